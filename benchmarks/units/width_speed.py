"""Steps of nets whose widths are segments of a pool, beside plain nets of the same widths: seconds and memory.

    python benchmarks/units/width_speed.py [--rounds 20]

Each net is trained in turn, a block of steps at a time: plain and wide, plain and narrow, and the wide one in pools, at
its start and after it has become narrow (`methods.narrow`, then `handle.compact()`). AdamW. The median of the ratios
over rounds counts. Memory is counted: values, gradients and moments of all parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench import head, row, title
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import realloc
from realloc import methods

STEPS, MOVES, CLASSES = 10, 4, 10
HEAD = ("net", "widths", "ms a step", "of the plain wide net's", "of a plain net of these widths", "MB held")


def mlp(*widths: int) -> nn.Sequential:
    a, b = widths
    return nn.Sequential(nn.Linear(784, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, CLASSES))


def convolutions(*widths: int) -> nn.Sequential:
    a, b = widths
    return nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(b, CLASSES),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[..., nn.Sequential]
    widths: tuple[int, int]
    example: tuple[int, ...]  # a batch


CASES = (
    Case("MLP 784-1024-1024-10, batch 128", mlp, (1024, 1024), (128, 784)),
    Case("two convolutions of 64 and 128 channels at 16 x 16, batch 64", convolutions, (64, 128), (64, 3, 16, 16)),
)


class Arm:
    """A net in training."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.optimizer = model, torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.seconds: list[float] = []

    def turn(self, batches: list[tuple[Tensor, Tensor]]) -> float:
        """Seconds of so many steps."""
        began = time.perf_counter()
        for x, y in batches:
            self.optimizer.zero_grad()
            cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        return time.perf_counter() - began

    def held(self) -> int:
        """Bytes of values, gradients and optimizer state."""
        state = [one for mine in self.optimizer.state.values() for one in mine.values() if isinstance(one, Tensor)]
        values = [*self.model.parameters(), *(p.grad for p in self.model.parameters() if p.grad is not None), *state]
        return sum(one.numel() * one.element_size() for one in values)


def batches_of(case: Case, seed: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(STEPS):
        x = torch.randn(case.example, generator=draw)
        found.append((x, torch.randint(CLASSES, (len(x),), generator=draw)))
    return found


def narrowed(case: Case) -> tuple[Arm, tuple[int, ...]]:
    """The wide net in pools, after it became narrow, and its widths now."""
    arm = Arm(case.make(*case.widths))
    method = methods.narrow(0.25)
    schedule = realloc.every(STEPS, total=MOVES * STEPS)
    handle = realloc.attach(arm.model, arm.optimizer, method, schedule=schedule)
    for seed in range(MOVES):
        arm.turn(batches_of(case, seed))
    handle.compact()
    plain = realloc.export.dense(arm.model)
    layers = [one for one in plain.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    return arm, tuple(one.weight.shape[0] for one in layers[:-1])


def table(case: Case, rounds: int) -> None:
    """One line for each arm."""
    narrow, widths = narrowed(case)
    wide = Arm(case.make(*case.widths))
    realloc.attach(wide.model, wide.optimizer, methods.uniform_widths(), schedule=realloc.every(10**6, total=10**7))
    arms = {
        "plain": (Arm(case.make(*case.widths)), case.widths), "in pools": (wide, case.widths),
        "plain, narrow": (Arm(case.make(*widths)), widths), "in pools, became narrow": (narrow, widths),
    }  # fmt: skip
    for turn in range(rounds + 1):
        batches = batches_of(case, turn)
        for arm, _ in arms.values():
            seconds = arm.turn(batches)
            if turn:  # the first one warms up
                arm.seconds.append(seconds)
    plain = {widths: arm for name, (arm, widths) in arms.items() if name.startswith("plain")}
    print(f"\n{case.name}\n\n{head(HEAD)}")
    for name, (arm, mine) in arms.items():
        ratios = [
            statistics.median(a / b for a, b in zip(arm.seconds, beside.seconds, strict=True))
            for beside in (plain[case.widths], plain[mine])
        ]
        ms, mb = 1e3 * statistics.median(arm.seconds) / STEPS, arm.held() / 1e6
        cells = ["-".join(map(str, mine)), f"{ms:.2f}", f"{ratios[0]:.2f}", f"{ratios[1]:.2f}", f"{mb:.1f}"]
        print(row([name, *cells]), flush=True)


def main() -> None:
    warnings.simplefilter("ignore")  # what holds its widths still says that nothing moved
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(title())
    for case in CASES:
        table(case, rounds)


if __name__ == "__main__":
    main()
