"""The learning rate over a run: up, then down to zero, by steps alone, also where the number of steps was revised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, final

from torch.optim import Optimizer

from realloc.errors import RecordError

WARM: Final = 0.06  # share of the run
LEAST: Final = 1e-3  # of the rate: a run of a few steps takes no step at rate zero


@final
@dataclass(frozen=True)
class Length:
    """How long a run is to be: so many steps; or so many seconds, and ``steps`` is what they were first thought to pay.

    ``reserve``: seconds of them that the judging of the held-out texts will take.
    """

    steps: int
    seconds: float | None = None
    reserve: float = 0.0


@final
@dataclass(frozen=True)
class Course:
    """``(step, total)`` in order: from that step on, the run is so many steps long in all. The first begins at 0.

    A run with a fixed number of steps has one entry. One with a budget of seconds revises its total as it measures.
    """

    totals: tuple[tuple[int, int], ...]

    @property
    def total(self) -> int:
        """Steps of the whole run, as far as it is known."""
        return self.totals[-1][1]

    @property
    def revised(self) -> int:
        """The step at which the total was last set."""
        return self.totals[-1][0]

    def progress(self, step: int) -> float:
        """From 0 to 1: the middle of a step that begins now, ``step`` steps having been taken.

        Where the total is revised it goes on from where it was, at another pace.

        >>> Course(((0, 10),)).progress(9), Course(((0, 10), (5, 25))).progress(15)
        (0.95, 0.7625)
        """
        gone = 0.0
        for (first, total), (after, _) in pairwise((*self.totals, (step + 1, 0))):
            if first > step:
                break
            gone += (1 - gone) * (min(after, step + 0.5) - first) / (total - first)
        return gone

    def set_at(self, step: int) -> int | None:
        """The length of the whole run that was set after so many steps, or None."""
        return next((total for first, total in self.totals if first == step), None)

    def over(self, step: int) -> bool:
        """Whether the run ends here, as far as is known."""
        return step >= self.total

    def revise(self, step: int, total: int) -> Course:
        """The same up to a step; from there on so many steps in all."""
        return Course((*self.totals, (step, total)))


def course_of(totals: object) -> Course:
    """A course from outside.

    Raises:
        RecordError: it is none: numbers that are no whole ones, or not ascending.

    >>> course_of([[0, 9], [4, 7]]).total
    7
    """
    rows = [tuple(row) for row in totals if isinstance(row, Sequence)] if isinstance(totals, list) else []
    whole = all(len(row) == 2 and all(type(number) is int for number in row) for row in rows)
    if not rows or len(rows) != len(totals) or not whole or rows[0][0] != 0:  # type: ignore[arg-type]
        raise RecordError("the course of the run is no list of (step, total); start a new run")
    inside = all(first < total for first, total in rows[:-1]) and rows[-1][0] <= rows[-1][1]
    if not inside or any(after <= first or after > total for (first, total), (after, _) in pairwise(rows)):
        raise RecordError("the course of the run goes back or beyond its end; start a new run")
    return Course(tuple(rows))


def set_rate(optimizer: Optimizer, progress: float) -> None:
    """Linear warm-up over 6 %, then linear to zero, from each group's own rate.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    >>> set_rate(optimizer, 0.53); round(optimizer.param_groups[0]["lr"], 3)
    0.5
    """
    factor = progress / WARM if progress < WARM else max(0.0, 1 - progress) / (1 - WARM)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * max(factor, LEAST)
