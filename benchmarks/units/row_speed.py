"""Steps per second of embeddings whose rows are a budget, beside torch's own full table: side by side in one process.

    python benchmarks/units/row_speed.py [--rounds 20]

Two tables of users and items with a heavy tail, a small MLP, AdamW. Arms take turns, a block of steps each, and the
median over the rounds counts. A figure is the steps per second of an arm over those of `nn.Embedding`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench import head, title
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import realloc
from realloc import methods


@dataclass(frozen=True)
class Size:
    """A data set's numbers: what is looked up is drawn with its tail, not read from it."""

    name: str
    users: int
    items: int
    dim: int
    batch: int


STEPS = 50  # of a turn, with one decision: short, so that what else the machine does falls on all arms alike
ROWS = (("product", 4), ("product", 2), ("product", 1), ("gradient", 4), ("frequency", 4), ("conflict", 4))
SIZES = (
    Size("MovieLens-100k", 943, 1_682, 16, 1024),
    Size("MovieLens-100k", 943, 1_682, 32, 256),
    Size("Book-Crossing", 278_858, 271_379, 16, 1024),
)


class Net(nn.Module):
    """A dot of towers would hide the embedding; this is the usual MLP over both."""

    def __init__(self, size: Size, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.users, self.items = make(size.users), make(size.items)
        self.head = nn.Sequential(nn.Linear(2 * size.dim, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.head(torch.cat([self.users(users), self.items(items)], 1)).squeeze(1)


def double(count: int, dim: int) -> nn.Module:
    """A tenth of the rows for each table, by double hashing."""
    return realloc.nn.DoubleHashing(count, dim, "10%")


class Arm:
    """A model in training."""

    def __init__(self, size: Size, rows: str | None, method: object = None, doubled: bool = False) -> None:
        torch.manual_seed(0)
        if rows is None:
            self.model = Net(size, lambda count: nn.Embedding(count, size.dim))
        else:
            store = realloc.nn.Rows(size.dim, rows, num_ids=size.users + size.items, directions=8)
            make = double if doubled else lambda count, dim: realloc.nn.Embedding(count, dim, store)
            self.model = Net(size, lambda count: make(count, size.dim))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.seconds: list[float] = []
        if method is not None:
            schedule = realloc.every(STEPS, total=10**6)
            self.handle = realloc.attach(self.model, self.optimizer, method, schedule=schedule)

    def turn(self, batches: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        """Seconds of so many steps."""
        began = time.perf_counter()
        for users, items, target in batches:
            self.optimizer.zero_grad()
            binary_cross_entropy_with_logits(self.model(users, items), target).backward()
            self.optimizer.step()
        return time.perf_counter() - began


def batches_of(size: Size, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids by the 2.5th power of a uniform number: the first tenth of them gets two fifths of the look-ups."""
    draw = torch.Generator().manual_seed(seed)

    def ids(count: int) -> Tensor:
        return (torch.rand(size.batch, generator=draw, dtype=torch.float64) ** 2.5 * count).long()

    def target() -> Tensor:
        return torch.rand(size.batch, generator=draw).round()

    return [(ids(size.users), ids(size.items), target()) for _ in range(STEPS)]


def table(size: Size, rounds: int) -> None:
    """One line for each arm."""
    arms = {
        "nn.Embedding": Arm(size, None), "hashing": Arm(size, "10%"), "double hashing": Arm(size, "10%", doubled=True),
        **{f"rows({s!r}, look={n})": Arm(size, "10%", methods.rows(s, look=n)) for s, n in ROWS},
    }  # fmt: skip
    for turn in range(rounds + 1):
        batches = batches_of(size, turn)
        for arm in arms.values():
            seconds = arm.turn(batches)
            if turn:  # the first one warms up
                arm.seconds.append(seconds)
    print(f"\n{size.name}: {size.users:,} and {size.items:,} ids, dim {size.dim}, batch {size.batch}\n")
    print(head(["arm", "ms a step", "of nn.Embedding", "of hashing"]))
    plain, hashing = arms["nn.Embedding"].seconds, arms["hashing"].seconds
    for name, arm in arms.items():
        ratios = [
            statistics.median(a / b for a, b in zip(beside, arm.seconds, strict=True)) for beside in (plain, hashing)
        ]
        ms = 1e3 * statistics.median(arm.seconds) / STEPS
        print(f"| {name} | {ms:.3f} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(title())
    for size in SIZES:
        table(size, rounds)


if __name__ == "__main__":
    main()
