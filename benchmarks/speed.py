"""Step time of 784-H-H-10, packed against dense, and what an attached handle and its moves cost. Ratios of one run.

python benchmarks/speed.py step     # forward, backward, AdamW(fused=True), batch 128
python benchmarks/speed.py idle     # attached, between moves, against the same packed model without a handle
python benchmarks/speed.py moves    # share of the run that moves take, by method
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import machine
import torch
from torch import nn

import realloc
from realloc import methods
from realloc.methods.method import Method

FOREVER = 10**9
CASES = [(1024, 0.05), (1024, 0.02), (1024, 0.01), (2048, 0.05), (4096, 0.05), (4096, 0.02), (4096, 0.01)]


def model_of(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    x, y = torch.randn(128, 784), torch.randint(10, (128,))

    def step() -> None:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def dense(width: int) -> Callable[[], None]:
    model = model_of(width)
    return stepper(model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))


def packed(width: int, density: float) -> Callable[[], None]:
    model = model_of(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    schedule = realloc.every(FOREVER, total=FOREVER)
    realloc.attach(model, optimizer, methods.rigl(density=density), schedule=schedule)
    return stepper(model, optimizer)


def bare(width: int, density: float) -> Callable[[], None]:
    """The same packed model, never attached."""
    model = model_of(width)
    realloc.prepare(model, methods.rigl(density=density))
    return stepper(model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True))


def interleaved(steps: list[Callable[[], None]], rounds: int, repeats: int) -> list[list[float]]:
    """Seconds of each step, in turns, so that all see the same machine."""
    for step in steps:
        for _ in range(5):
            step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, mine in zip(steps, times, strict=True):
            for _ in range(repeats):
                began = time.perf_counter()
                step()
                mine.append(time.perf_counter() - began)
    return times


def step_table(rounds: int) -> None:
    print("| H | density | dense ms | packed ms | ratio | quartiles of the ratio by round |\n|---|---|---|---|---|---|")
    for width, density in CASES:
        repeats = 10 if width < 4096 else 3
        a, b = interleaved([dense(width), packed(width, density)], rounds, repeats)
        by_round = sorted(
            statistics.median(a[i : i + repeats]) / statistics.median(b[i : i + repeats])
            for i in range(0, len(a), repeats)
        )
        low, high = by_round[len(by_round) // 4], by_round[3 * len(by_round) // 4]
        da, db = statistics.median(a) * 1e3, statistics.median(b) * 1e3
        print(
            f"| {width} | {density:.0%} | {da:.2f} | {db:.2f} | {da / db:.1f} | {low:.1f} to {high:.1f} |", flush=True
        )


def idle_table(rounds: int) -> None:
    print("| H | density | bare ms | attached ms | overhead |\n|---|---|---|---|---|")
    for width, density in ((1024, 0.05), (4096, 0.02)):
        a, b = interleaved([bare(width, density), packed(width, density)], rounds * 4, 10)
        da, db = statistics.median(a) * 1e3, statistics.median(b) * 1e3
        print(f"| {width} | {density:.0%} | {da:.3f} | {db:.3f} | {db / da - 1:+.2%} |", flush=True)


class Seconds:
    def __init__(self) -> None:
        self.spent: list[float] = []

    def decision(self, event: dict[str, object]) -> None:
        self.spent.append(float(str(event["seconds"])))


def moves_table(width: int, density: float, every: int, steps: int) -> None:
    print(f"H = {width}, density {density:.0%}, a move every {every} steps, {steps} steps\n")
    print("| method | ms a step | ms a move | share of the run | under 2 % from every |\n|---|---|---|---|---|")
    recipes: dict[str, Callable[[float], Method]] = {
        name: getattr(methods, name)
        for name in ("gse", "sparse_evolution", "random_moves", "rigl", "granet", "chts", "smet", "snfs")
    }
    for name, recipe in recipes.items():
        model = model_of(width)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        method = recipe(density)
        sink = Seconds()
        realloc.attach(model, optimizer, method, schedule=realloc.every(every, total=steps), record=sink)
        step = stepper(model, optimizer)
        plain, whole = [], 0.0
        for number in range(1, steps + 1):
            began = time.perf_counter()
            step()
            took = time.perf_counter() - began
            if number > every:  # the first interval warms up
                whole += took
                if number % every:
                    plain.append(took)
        spent = sink.spent[1:]
        move, one = statistics.mean(spent), statistics.median(plain)
        share = sum(spent) / whole
        print(f"| {name} | {one * 1e3:.2f} | {move * 1e3:.1f} | {share:.2%} | {move / (0.02 * one):.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["step", "idle", "moves"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    if args.what == "step":
        step_table(args.rounds)
    elif args.what == "idle":
        idle_table(args.rounds)
    else:
        moves_table(args.width, args.density, args.every, args.steps)


if __name__ == "__main__":
    main()
