"""Fashion-MNIST at 50 and 70 % of the visits: each way to choose examples beside a random subset and fewer epochs.

    python benchmarks/units/examples.py run      # tunes each arm's rate, then five paired seeds; resumes run by run
    python benchmarks/units/examples.py table

``uniform`` visits every example in fewer epochs, its schedule decayed to that length: the same number of visits.
784-256-256-10, AdamW, cosine; rates by the accuracy on 6,000 held-out images (seeds 1000, 1001);
the test images are read once a run. REALLOC_DATA may name the folder of the images.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from typing import Any

from bench import Kept, head, interval, title

from realloc.train.config import run_config
from realloc.train.run import train

EPOCHS = 10
SHARES = (0.5, 0.7)
RATES = (5e-4, 1e-3, 2e-3)
ARMS = ("uniform", "rs2", "infobatch", "importance")
CONTROLS = ("rs2", "uniform")
HEAD = ("share", "arm", "rate", "test accuracy %", "minus rs2, 95 %", "minus uniform, 95 %", "visits", "seconds")


@dataclass(frozen=True)
class Case:
    arm: str
    share: float
    rate: float
    seed: int

    def run(self) -> dict[str, Any]:
        values: dict[str, Any] = {"data": "fashion-mnist", "model": "mlp:256,256", "lr": self.rate, "seed": self.seed}
        if self.arm == "uniform":
            values |= {"method": "dense", "epochs": round(self.share * EPOCHS)}
        else:
            values |= {"method": self.arm, "epochs": EPOCHS, "settings": {"share": self.share}}
        found = train(run_config(values))
        visits = found.held if found.held is not None else round(self.share * EPOCHS) * ROWS
        return {
            "held": found.validation_metric, "test": found.test_accuracy, "seconds": found.train_seconds,
            "visits": visits, "steps": found.steps,
        }  # fmt: skip


ROWS = 54_000  # of 60,000, a tenth is held out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("act", choices=("run", "table"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    kept = Kept("examples", run=args.act == "run")
    found: dict[tuple[float, str], tuple[float, list[dict[str, Any]]]] = {}
    for share in SHARES:
        for arm in args.arms:
            tuned = kept.tuned(lambda rate, seed, arm=arm, share=share: Case(arm, share, rate, seed), RATES)
            if tuned is not None:
                runs = [kept.get(Case(arm, share, tuned.rate, seed)) for seed in range(args.seeds)]
                found[share, arm] = tuned.rate, [one for one in runs if one is not None]
    print(title() + "\n" + head(HEAD))
    for (share, arm), (rate, runs) in found.items():
        accuracy = [100 * one["test"] for one in runs]
        gaps = []
        for control in CONTROLS:
            rival = [100 * one["test"] for one in found.get((share, control), (0.0, []))[1]]
            gaps.append("" if control == arm else interval([a - b for a, b in zip(accuracy, rival, strict=False)]))
        cells = [f"{share:g}", arm, f"{rate:g}", f"{statistics.mean(accuracy):.2f} (n={len(runs)})", *gaps,
                 f"{runs[0]['visits']:,}", f"{statistics.mean(one['seconds'] for one in runs):.1f}"]  # fmt: skip
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
