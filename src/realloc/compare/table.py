"""What a comparison found, in numbers: means, paired differences to the first arm, and whether there is a winner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any, final

from realloc.compare.student import Interval, interval
from realloc.train.memory import highest
from realloc.train.result import RunResult

LEAST_SEEDS = 3  # fewer name no winner


@final
@dataclass(frozen=True)
class Row:
    """One arm. ``difference`` is paired by seed with the first arm; None in the first row."""

    arm: str
    runs: tuple[RunResult, ...]
    mean: float
    deviation: float | None
    difference: Interval | None
    seconds: float
    peak_bytes: int | None
    train_peak_bytes: int | None
    params: int
    excess: int | None
    held: int | None

    @property
    def began_with_more(self) -> bool:
        """Whether the arm held more on its way than at its end: equal at the end, not in what it cost."""
        run = self.runs[0]
        fell = run.currency == "weights" and run.budget != run.held
        return self.arm == "prune_after" or fell


@final
@dataclass(frozen=True)
class Comparison:
    """All arms over the same seeds. ``winner`` is the best arm of the equal budget, when it beats each other one.

    It must beat each on the paired 95 % interval, and there must be three seeds; else ``why`` says why there is none.
    """

    metric: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    winner: str | None
    why: str

    def as_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold."""
        rows = []
        for row in self.rows:
            difference = None if row.difference is None else row.difference._asdict()
            rows.append(asdict(row) | {"difference": difference, "runs": [run.as_json() for run in row.runs]})
        return {
            "metric": self.metric,
            "seeds": list(self.seeds),
            "first": self.rows[0].arm,
            "winner": self.winner,
            "why": self.why,
            "arms": rows,
        }


def tabulate(arms: Sequence[str], seeds: Sequence[int], results: dict[tuple[str, int], RunResult]) -> Comparison:
    """Put the results of every arm and seed together."""
    rows = tuple(_row(arm, arms[0], seeds, results) for arm in arms)
    winner, why = _winner(rows, seeds)
    return Comparison(rows[0].runs[0].metric, tuple(seeds), rows, winner, why)


def _row(arm: str, first: str, seeds: Sequence[int], results: dict[tuple[str, int], RunResult]) -> Row:
    runs = tuple(results[arm, seed] for seed in seeds)
    values = [_value(run) for run in runs]
    against = [_value(results[first, seed]) for seed in seeds]
    difference = None if arm == first else interval([a - b for a, b in zip(values, against, strict=True)])
    return Row(
        arm, runs, mean(values), stdev(values) if len(values) > 1 else None, difference,
        mean(run.train_seconds for run in runs), highest(*(run.peak_bytes for run in runs)),
        highest(*(run.train_peak_bytes for run in runs)),
        runs[0].params, runs[0].excess, runs[0].held,
    )  # fmt: skip


def _winner(rows: Sequence[Row], seeds: Sequence[int]) -> tuple[str | None, str]:
    if len(seeds) < LEAST_SEEDS:
        return None, f"no winner is named under {LEAST_SEEDS} seeds (here {len(seeds)})"
    contest = [row for row in rows if row.arm != "dense"]
    if len(contest) < 2:
        return None, "no winner is named: fewer than two arms share the budget"
    best = max(contest, key=lambda row: row.mean)
    for other in contest:
        pairs = zip(best.runs, other.runs, strict=True)
        if other is not best and not interval([_value(a) - _value(b) for a, b in pairs]).excludes_zero:
            return None, f"no winner: {best.arm} and {other.arm} are not told apart by {len(seeds)} seeds"
    more = "; it held more weights on its way" if best.began_with_more else ""
    return best.arm, f"{best.arm} beats every other arm of the budget on the paired 95 % interval{more}"


def _value(run: RunResult) -> float:
    # a metric that is not finite never reaches here: such a run has failed
    return run.test_metric if run.test_metric is not None else 0.0
