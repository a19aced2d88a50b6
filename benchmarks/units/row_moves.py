"""What a move of embedding rows costs: in loss, with migration and with reset, and in steps beside nn.Embedding.

    python benchmarks/units/row_moves.py run      # both, five seeds; resumes; the steps want a quiet machine
    python benchmarks/units/row_moves.py table

Jumps: MovieLens-100k as in rows.py at 10 %, scored by gradient, at its rate. The squared error on the held-out ratings
is read right before and right after each move. Steps: forward, backward and update of the same net, ours with a move
each 20 steps and the gradients of each, or of each fourth, step noted; medians of 12 turns of 20 steps each (3 turns
with a million ids).
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bench import Arm, Kept, arguments, head, row, title
from ratings import ratings
from torch import nn

import realloc
from realloc import methods
from rows import BATCH, DIM, RATES, Case, Net, judged


@dataclass(frozen=True)
class Jump:
    """The loss on held-out ratings right before and right after each move; ``test`` is the mean jump, in % of it."""

    data: str
    score: str
    percent: float
    rate: float
    seed: int
    migrate: bool

    def run(self) -> dict[str, Any]:
        before: list[float] = []
        after: list[float] = []

        def watch(net: Net, optimizer: Any, schedule: Any) -> Callable[[], None]:
            found, steps = ratings(self.data), [0]

            def note(to: list[float]) -> None:
                if schedule.due(steps[0]):
                    to.append(judged(net, found, found.held)["rmse"] ** 2)

            def first(*_: Any) -> None:
                steps[0] += 1
                note(before)

            optimizer.register_step_post_hook(first)
            return lambda: note(after)

        made = Case(self.data, self.score, self.percent, self.rate, self.seed, self.migrate).run(watch)
        jumps = [100 * (b / a - 1) for a, b in zip(before, after, strict=True)]
        return {"test": statistics.mean(jumps), "jumps": jumps, "rmse": made["rmse"], "seconds": made["seconds"]}


@dataclass(frozen=True)
class Speed:
    """Whole steps, in turns: ``test`` is our steps in a second over those of nn.Embedding."""

    ids: int
    look: int
    sparse: bool
    seed: int

    def run(self) -> dict[str, Any]:
        torch.manual_seed(self.seed)
        draws = [(torch.rand(BATCH, 2) ** 3 * self.ids).long() for _ in range(16)]  # a few ids come often

        def steps_of(table: Any, attached: bool) -> Callable[[int], float]:
            net, kind = Net(table), torch.optim.SparseAdam if self.sparse else torch.optim.AdamW
            optimizers = [kind([table.weight], lr=1e-3), torch.optim.AdamW(net.head.parameters(), lr=1e-3)]
            if attached:
                every = realloc.every(20, total=1000)
                realloc.attach(net, optimizers[0], methods.rows(look=self.look), schedule=every)

            def go(count: int) -> float:
                began = time.perf_counter()
                for step in range(count):
                    net(draws[step % len(draws)]).square().mean().backward()
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
                return (time.perf_counter() - began) / count

            return go

        rows = realloc.nn.Rows(DIM, "10%", num_ids=self.ids, sparse=self.sparse)
        plain = steps_of(nn.Embedding(self.ids, DIM, sparse=self.sparse), attached=False)
        ours = steps_of(realloc.nn.Embedding(self.ids, DIM, rows), attached=True)
        plain(20), ours(40)
        turns = [(plain(20), ours(20)) for _ in range(12 if self.ids < 100_000 else 3)]
        return {
            "test": statistics.median(a / b for a, b in turns), "seconds": sum(map(sum, turns)),
            "plain_ms": 1e3 * statistics.median(a for a, _ in turns),
            "ours_ms": 1e3 * statistics.median(b for _, b in turns),
        }  # fmt: skip


SETTINGS = ((2_625, 1, False), (2_625, 4, False), (1_000_000, 1, False), (1_000_000, 4, False), (1_000_000, 1, True))
SPEED = ("ids", "rows", "optimizer", "noted", "nn.Embedding ms", "ours ms", "ours / theirs, steps in a second")
JUMP = ("rows that move", "jump of the loss at the first move %", "at later moves, mean %", "largest %",
        "RMSE at the end", "minus migration, 95 %")  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    args = arguments(__doc__, ("jump", "speed"))
    kept, runs = Kept("row_moves", run=args.act == "run", beside=args.beside), Kept("rows", run=False)
    print(title())
    if "jump" in args.arms:
        tuned = runs.tuned(lambda rate, seed: Case("movielens", "gradient", 10.0, rate, seed), RATES, (0,))
        if tuned is None:
            raise SystemExit("the rate is that of rows.py at 10 %, scored by gradient: run that first")
        of = {
            migrate: kept.arm(
                lambda rate, seed, m=migrate: Jump("movielens", "gradient", 10.0, rate, seed, m),
                (tuned.rate,),
                args.seeds,
            )
            for migrate in (True, False)
        }
        print(head(JUMP))
        for migrate, arm in of.items():
            if arm is not None:
                print(row(["migrate" if migrate else "reset", *_jumps(arm), arm.less(of[True], "rmse", places=4)]))
        print()
    if "speed" in args.arms:
        print(head(SPEED))
        for ids, look, sparse in SETTINGS:
            arm = kept.arm(lambda _, seed, one=(ids, look, sparse): Speed(*one, seed), (0.0,), args.seeds)
            if arm is not None:
                mark = " (beside)" if any(one.get("beside") for one in arm.runs) else ""
                noted = "each step" if look == 1 else f"each {look}th step"
                times = (f"{arm.mean(key):.2f}" for key in ("plain_ms", "ours_ms"))
                kind, ratio = "SparseAdam" if sparse else "AdamW", f"{arm.mean():.2f}{mark} (n={len(arm.runs)})"
                print(row([f"{ids:,}", "10 %", kind, noted, *times, ratio]))


def _jumps(arm: Arm) -> list[str]:
    first = statistics.mean(one["jumps"][0] for one in arm.runs)
    later = [jump for one in arm.runs for jump in one["jumps"][1:]]
    return [f"{first:+.3f}", f"{statistics.mean(later):+.3f}", f"{max(later):+.3f}", f"{arm.mean('rmse'):.4f}"]


if __name__ == "__main__":
    main()
