"""A small convolutional net in masked storage: the methods are right where no speed is claimed.

    python benchmarks/convolution.py --seeds 3

Fashion-MNIST, the first 10,000 training images, one budget; all layers but the classifier masked. Test accuracy.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings

import machine
import torch
from scipy import stats
from torch import nn

import realloc
from realloc import methods
from realloc.train import data, models

ARMS = ("dense", "static", "random_moves", "sparse_evolution", "rigl", "granet", "gse", "snfs")


def accuracy(arm: str, seed: int, density: float, epochs: int, images: int) -> tuple[float, int | None]:
    rows = data.load("fashion-mnist")
    x, y = rows.train.x[:images], rows.train.y[:images]
    model = models.build("cnn", rows.features, rows.outputs, image=rows.image, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
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
    with torch.no_grad():
        hits = sum(
            int((model(rows.test.x[i : i + 1000]).argmax(1) == rows.test.y[i : i + 1000]).sum())
            for i in range(0, 10_000, 1000)
        )
    return hits / 100, None if handle is None else handle.held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    print("| arm | weights held at the end | test accuracy % | minus static, 95 % |\n|---|---|---|---|")
    found = {}
    for arm in args.arms:
        got = [accuracy(arm, seed, args.density, args.epochs, args.images) for seed in range(args.seeds)]
        found[arm] = [a for a, _ in got]
        gap = ""
        if "static" in found and arm != "static":
            differences = [a - b for a, b in zip(found[arm], found["static"], strict=True)]
            half = (
                stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
            )
            gap = f"{statistics.mean(differences):+.2f} ± {half:.2f}"
        held = "all" if got[0][1] is None else f"{got[0][1]:,}"
        print(f"| {arm} | {held} | {statistics.mean(found[arm]):.2f} (n={args.seeds}) | {gap} |", flush=True)


if __name__ == "__main__":
    main()
