"""How a new slot should start under AdamW: the choice behind the default of `Method.moments`.

    python benchmarks/newcomers.py --out runs/newcomers.jsonl     # resumes run by run

Fashion-MNIST, 784-1024-1024-10 at 93,000 weights, 50 moves. Accuracy on the held-out slice of the training data, seeds
1000 and 1001: the test set has no say in a default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from dataclasses import replace
from pathlib import Path

import machine
import torch
from torch import nn

import realloc
from realloc import methods
from realloc.methods.method import Method
from realloc.train import data, models
from realloc.train.arms import decay
from realloc.train.dataset import Dataset
from realloc.train.order import Batches

DENSITY = 93_000 / (784 * 1024 + 1024 * 1024)
METHODS = ("rigl", "sparse_evolution")
RULES = ("zero", "median", "seed", "zero, damped by age")
RATES = (4e-3, 8e-3)
SEEDS = (1000, 1001)


def recipe(name: str, rule: str) -> Method:
    made: Method = getattr(methods, name)(DENSITY)
    if rule == "zero, damped by age":
        return replace(made, moments="zero", young=1)
    return replace(made, moments=rule)  # type: ignore[arg-type]


def accuracy(rows: Dataset, method: Method, rate: float, seed: int, epochs: int) -> float:
    model = models.build("mlp:1024,1024", rows.features, rows.outputs, image=rows.image, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    batches = Batches(rows.train, 128, seed)
    total = epochs * batches.per_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay(step, total))
    schedule = realloc.every(int(0.75 * total) // 50, until=0.75, total=total)
    realloc.attach(model, optimizer, method, schedule=schedule, seed=seed)
    for step in range(total):
        x, y = batches.at(step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        parts = zip(rows.validation.x.split(1000), rows.validation.y.split(1000), strict=True)
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    return 100 * hits / len(rows.validation.y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/newcomers.jsonl"))
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    found = {tuple(case): value for case, value in known}
    rows = data.load("fashion-mnist")
    for name in METHODS:
        for rule in RULES:
            for rate in RATES:
                for seed in SEEDS:
                    case = (name, rule, rate, seed, args.epochs)
                    if case not in found:
                        found[case] = accuracy(rows, recipe(name, rule), rate, seed, args.epochs)
                        with args.out.open("a") as file:
                            file.write(json.dumps([case, found[case]]) + "\n")
    print(
        f"`{machine.command()}`\n\n{machine.describe()}\n\n{args.epochs} epochs, accuracy % on held-out training data\n"
    )
    print("| method | second moments of a new slot | " + " | ".join(f"rate {rate:g}" for rate in RATES) + " |")
    print("|---|---|" + "---|" * len(RATES))
    for name in METHODS:
        for rule in RULES:
            means = [statistics.mean(found[name, rule, rate, seed, args.epochs] for seed in SEEDS) for rate in RATES]
            print(f"| {name} | {rule} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
