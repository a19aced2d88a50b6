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
MOVING = ("gse", "sparse_evolution", "random_moves", "rigl", "granet", "chts", "smet", "snfs")
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
    """Twins from one seed, some steps in turns, as a run is warm too. Each round makes new ones, elsewhere in memory.

    A turn of one is compared with the turn of the other beside it; the overhead is the median over all pairs of turns.
    """
    print("| H | density | bare ms | overhead | middle half of the rounds |\n|---|---|---|---|---|")
    turn = 10
    for width, density, repeats in ((1024, 0.05, 300), (4096, 0.02, 80)):
        bares, ratios = [], []
        for number in range(rounds):
            makers = (bare, packed) if number % 2 == 0 else (packed, bare)
            twins = {make: make(width, density) for make in makers}
            a, b = interleaved([twins[bare], twins[packed]], repeats // turn, turn)
            bares.append(statistics.median(a))
            pairs = [(b[i : i + turn], a[i : i + turn]) for i in range(0, len(a), turn)]
            ratios.append([statistics.median(mine) / statistics.median(plain) - 1 for mine, plain in pairs])
        low, _, high = statistics.quantiles([statistics.median(one) for one in ratios])
        overhead = statistics.median(ratio for one in ratios for ratio in one)
        print(
            f"| {width} | {density:.0%} | {statistics.median(bares) * 1e3:.3f} | {overhead:+.2%} | "
            f"{low:+.2%} to {high:+.2%} |",
            flush=True,
        )


class Seconds:
    """A record that keeps what each decision took."""

    def __init__(self) -> None:
        self.spent: list[float] = []

    def decision(self, event: dict[str, object]) -> None:
        self.spent.append(float(str(event["seconds"])))


def moves_table(width: int, density: float, every: int, steps: int, names: list[str]) -> None:
    """What moves add to a run: the step that collects and moves, and the one after it, which derives indexes anew."""
    print(f"H = {width}, density {density:.0%}, a move every {every} steps, {steps} steps\n")
    print(
        "| method | ms a step | ms a move | ms it adds in all | share of the run | under 2 % from every |\n"
        "|---|---|---|---|---|---|"
    )
    for name in names:
        model = model_of(width)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        recipe: Callable[[float], Method] = getattr(methods, name)
        sink = Seconds()
        realloc.attach(model, optimizer, recipe(density), schedule=realloc.every(every, total=steps), record=sink)
        step = stepper(model, optimizer)
        took = []
        for _ in range(steps + 1):
            began = time.perf_counter()
            step()
            took.append(time.perf_counter() - began)
        added, plain = [], []
        for last in range(2 * every, steps + 1, every):  # the first interval warms up
            one = statistics.median(took[last - every + 1 : last - 1])
            plain.append(one)
            added.append(took[last - 1] + took[last] - 2 * one)
        extra, one, move = statistics.mean(added), statistics.mean(plain), statistics.mean(sink.spent[1:])
        share = extra / (extra + every * one)
        figures = f"{one * 1e3:.2f} | {move * 1e3:.1f} | {extra * 1e3:.1f} | {share:.2%} | {extra / (0.02 * one):.0f}"
        print(f"| {name} | {figures} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["step", "idle", "moves"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--methods", nargs="+", default=list(MOVING))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    if args.what == "step":
        step_table(args.rounds)
    elif args.what == "idle":
        idle_table(args.rounds)
    else:
        moves_table(args.width, args.density, args.every, args.steps, args.methods)


if __name__ == "__main__":
    main()
