"""What a move of embedding rows does to the loss, with migration and with reset. Steps per second: row_speed.py.

    python benchmarks/units/row_moves.py run      # five seeds; resumes run by run
    python benchmarks/units/row_moves.py table

MovieLens-100k as in rows.py at 10 %, scored by gradient, at its rate. The squared error on the held-out ratings is read
right before and right after each move.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bench import Arm, Kept, arguments, head, row, title
from ratings import ratings

from rows import RATES, Case, Net, judged


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


JUMP = ("rows that move", "jump of the loss at the first move %", "at later moves, mean %", "largest %",
        "RMSE at the end", "minus migration, 95 %")  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    args = arguments(__doc__, ("migrate", "reset"))
    kept, runs = Kept("row_moves", run=args.act == "run", beside=args.beside), Kept("rows", run=False)
    print(title())
    tuned = runs.tuned(lambda rate, seed: Case("movielens", "gradient", 10.0, rate, seed), RATES, (0,))
    if tuned is None:
        raise SystemExit("the rate is that of rows.py at 10 %, scored by gradient: run that first")
    found: dict[str, Arm] = {}
    for name in args.arms:
        one = Jump("movielens", "gradient", 10.0, tuned.rate, 0, name == "migrate")
        arm = kept.arm(lambda rate, seed, one=one: replace(one, rate=rate, seed=seed), (tuned.rate,), args.seeds)
        if arm is not None:
            found[name] = arm
    print(head(JUMP))
    for name, arm in found.items():
        print(row([name, *_jumps(arm), arm.less(found.get("migrate"), "rmse", places=4)]))


def _jumps(arm: Arm) -> list[str]:
    first = statistics.mean(one["jumps"][0] for one in arm.runs)
    later = [jump for one in arm.runs for jump in one["jumps"][1:]]
    return [f"{first:+.3f}", f"{statistics.mean(later):+.3f}", f"{max(later):+.3f}", f"{arm.mean('rmse'):.4f}"]


if __name__ == "__main__":
    main()
