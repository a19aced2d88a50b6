"""Examples at 50 and 70 % of the visits: each way to choose them beside a random subset and fewer epochs.

    python benchmarks/units/examples.py run      # tunes each arm's rate, then five paired seeds; resumes run by run
    python benchmarks/units/examples.py table

``uniform`` visits every example in fewer epochs, its schedule decayed to that length: the same number of visits.
Fashion-MNIST: 784-256-256-10, 10 epochs' schedule; held out are 6,000 images. SST-2: frozen MiniLM features,
384-128-2, 20 epochs' schedule; held out is its dev part. AdamW, cosine; rates by the accuracy on the held-out rows
(seeds 1000, 1001); the test rows are read once a run. RHO looks at two candidates for each visit, so it stands beside
arms of the same cost too: a trained visit is 3 forward passes, a look 1. REALLOC_DATA may name the folder of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import Arm, Kept, arguments, head, row, title
from sentences import EQUAL_COST, OVER, Sentences

from realloc.train.config import run_config
from realloc.train.run import train

EPOCHS = 10
SHARES = (0.5, 0.7)
RATES = (5e-4, 1e-3, 2e-3)
ARMS = ("uniform", "rs2", "infobatch", "importance", "rho")
CONTROLS = ("rs2", "uniform")
HEAD = ("share", "arm", "rate", "test accuracy %", "minus rs2, 95 %", "minus uniform, 95 %", "visits",
        "cost, forward passes", "epochs drawn by weight", "seconds")  # fmt: skip
ROWS = 54_000  # of 60,000, a tenth is held out


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


Make = Callable[[str, float, float, int], Any]


def show(kept: Kept, name: str, make: Make, cells: Sequence[tuple[float, str, float]], seeds: int) -> None:
    """A table of (share, arm, share of its controls)."""

    def arm_of(arm: str, share: float) -> Arm | None:
        return kept.arm(lambda rate, seed: make(arm, share, rate, seed), RATES, seeds)

    lines, asked = [], {}
    for share, arm, _ in cells:
        asked[share, arm] = arm_of(arm, share)
    for share, arm, beside in cells:
        found = asked[share, arm]
        if found is None:
            continue
        rivals = [asked.get((beside, control)) for control in CONTROLS]
        gaps = ["" if rival is None else found.less(rival, scale=100) for rival in rivals]
        one = found.runs[0]
        weighed = str(one["weighed"]) if "weighed" in one and arm != "uniform" else ""
        cost = f"{one.get('cost', 3 * one['visits']):,}"
        lines.append(row([f"{share:.3g}", arm, f"{found.rate:g}", f"{found.mean(scale=100):.2f} (n={len(found.runs)})",
                          *gaps, f"{one['visits']:,}", cost, weighed, found.seconds]))  # fmt: skip
    print("\n".join([f"\n### {name}\n", head(HEAD), *lines]))


def main() -> None:
    args = arguments(__doc__, ARMS)
    kept = Kept("examples", run=args.act == "run", beside=args.beside)
    print(title())
    cells = [(share, arm, share) for share in SHARES for arm in args.arms if arm != "rho"]
    costly = [(EQUAL_COST, control, EQUAL_COST) for control in CONTROLS if control in args.arms]
    rho = [*costly, (1 / OVER, "rho", EQUAL_COST)] if "rho" in args.arms else []
    show(kept, "SST-2", lambda arm, share, rate, seed: Sentences(arm, share, rate, seed), [*cells, *rho], args.seeds)
    show(kept, "Fashion-MNIST", lambda arm, share, rate, seed: Case(arm, share, rate, seed), cells, args.seeds)


if __name__ == "__main__":
    main()
