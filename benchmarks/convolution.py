"""A small convolutional net in masked storage: the methods are right where no speed is claimed.

    python benchmarks/convolution.py                # resumes run by run

Fashion-MNIST, the first 10,000 training images, one budget; all layers but the classifier masked. Test accuracy, at the
rate of RATES that is best for the arm on held-out training images (seed 1000, none of the paired seeds); where the best
is the highest, it is doubled until it is not.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path

import machine
import torch
from scipy import stats
from torch import nn

import realloc
from realloc import methods
from realloc.train import data, models
from realloc.train.dataset import Dataset

Size = tuple[float, int, int]  # density, epochs, images
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TUNING_SEED = 1000
ARMS = ("dense", "static", "random_moves", "sparse_evolution", "rigl", "granet", "gse", "snfs")


def accuracy(rows: Dataset, arm: str, seed: int, rate: float, judge: str, size: Size) -> tuple[float, int | None]:
    """Accuracy in percent on the rows called ``judge``, and the weights held."""
    density, epochs, images = size
    x, y = rows.train.x[:images], rows.train.y[:images]
    model = models.build("cnn", rows.features, rows.outputs, image=rows.image, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    steps = epochs * (images // 100)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    handle = None
    if arm != "dense":
        method = getattr(methods, arm)(density=density).on(storage="masked")
        handle = realloc.attach(
            model, optimizer, method, schedule=realloc.every(max(1, steps // 50), until=0.75, total=steps), seed=seed
        )
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if step % (images // 100) == 0:
            shuffled = torch.randperm(images, generator=order)
        batch = shuffled[(step * 100) % images :][:100]
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    asked = getattr(rows, judge)
    with torch.no_grad():
        parts = zip(asked.x.split(1000), asked.y.split(1000), strict=True)
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    return 100 * hits / len(asked.y), None if handle is None else handle.held


@dataclass(frozen=True)
class Bench:
    """Runs, each made once and kept."""

    rows: Dataset
    size: Size
    out: Path
    known: dict[str, tuple[float, int | None]]

    def run(self, arm: str, seed: int, rate: float, judge: str) -> tuple[float, int | None]:
        case = json.dumps([arm, seed, rate, judge, *self.size])
        if case not in self.known:
            self.known[case] = accuracy(self.rows, arm, seed, rate, judge, self.size)
            with self.out.open("a") as file:
                file.write(json.dumps([case, self.known[case]]) + "\n")
        return self.known[case]

    def tried(self, arm: str) -> dict[float, float]:
        """Held-out accuracy by rate."""
        done: dict[float, float] = {}
        rates = list(RATES)
        for rate in rates:
            done[rate] = self.run(arm, TUNING_SEED, rate, "validation")[0]
            if rate == rates[-1] and done[rate] == max(done.values()):
                rates.append(2 * rate)
        return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--out", type=Path, default=Path("runs/convolution.jsonl"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kept = args.out.read_text().splitlines() if args.out.exists() else []
    known = {case: (value[0], value[1]) for case, value in map(json.loads, kept)}
    bench = Bench(data.load("fashion-mnist"), (args.density, args.epochs, args.images), args.out, known)
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    print(
        "| arm | rate | weights held at the end | test accuracy % | minus static, 95 % | held out, by rate |\n"
        "|---|---|---|---|---|---|"
    )
    found: dict[str, list[float]] = {}
    for arm in args.arms:
        tried = bench.tried(arm)
        rate = max(tried, key=lambda one: tried[one])
        got = [bench.run(arm, seed, rate, "test") for seed in range(args.seeds)]
        found[arm] = [a for a, _ in got]
        gap = ""
        if "static" in found and arm != "static":
            differences = [a - b for a, b in zip(found[arm], found["static"], strict=True)]
            half = (
                stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
            )
            gap = f"{statistics.mean(differences):+.2f} ± {half:.2f}"
        held = "all" if got[0][1] is None else f"{got[0][1]:,}"
        cells = ", ".join(f"{one:g}: {value:.2f}" for one, value in tried.items())
        mean = statistics.mean(found[arm])
        print(f"| {arm} | {rate:g} | {held} | {mean:.2f} (n={args.seeds}) | {gap} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
