"""Turning a budget of seconds into steps while a run goes on; each revision is written down before it is followed.

Steps are not alike (texts differ in length, a cache fills in the first epoch, frozen layers come and go), so the number
of steps is set anew from those last measured: after the first few, and whenever a quarter of what was left is gone.
A resume reads what was written and follows it step by step, so it is bit-equal as far as the written course goes; only
beyond the last revision does the clock decide again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from realloc.errors import ConfigError
from realloc.finetune.pace import Course, Length
from realloc.train.loop import Clock

FEW: Final = 4  # steps that a revision is made from, at the least; a process's first step loads code and is left out
SHARE: Final = 0.25  # of the seconds, or of the steps, that were left at a revision: after it comes the next
SPARE: Final = 1.05  # times a step's seconds must be left for it to be taken


@final
class Guide:
    """Knows at each step how long the run is.

    Args:
        length: of the run, as it was decided.
        clock: of the run; everything on it counts against the seconds.
        course: that an earlier process wrote down; None: a new one.
        write: keeps a course; called off the clock.
    """

    def __init__(
        self, length: Length, clock: Clock, course: Course | None = None, write: Callable[[Course], None] | None = None
    ) -> None:
        self.length, self.clock = length, clock
        self.course = Course(((0, length.steps),)) if course is None else course
        self._write = write
        self._mark: tuple[int, float] | None = None  # step and seconds from which steps are measured
        self._last, self._longest = 0.0, 0.0  # seconds at the last step's end; of the longest step since the mark
        self._left = 0.0  # seconds at the mark

    @property
    def left(self) -> float:
        """Seconds that steps may still take; endless where the budget is not in seconds."""
        seconds = self.length.seconds
        return float("inf") if seconds is None else seconds - self.length.reserve - self.clock.seconds

    def start(self, texts: int) -> None:
        """Before the first step of a new run.

        Raises:
            ConfigError: nothing is left for a step.
        """
        if self.left <= 0:
            spent, budget = self.clock.seconds, self.length.seconds or 0.0
            raise ConfigError(
                f"the budget of {budget:g} s pays for no step: what comes before the first took {spent:.1f} s, and "
                f"judging {texts:,} held-out texts will take {self.length.reserve:.1f} s; give more than "
                f"{budget - self.left:.1f} s"
            )

    def after(self, step: int) -> None:
        """After each step, with the number of steps taken: revise where it is time to."""
        if self.length.seconds is None or step <= self.course.revised:
            return
        now = self.clock.seconds
        if self._mark is None:
            self._measure_from(step, now, 0.0)
        self._longest, self._last = max(self._longest, now - self._last), now
        assert self._mark is not None
        taken, spent = step - self._mark[0], now - self._mark[1]
        ahead = self.course.total - self._mark[0]
        if self.course.over(step) or self.left < SPARE * self._longest:
            self._revise(step, step)  # the end is written down too: a resume of what was cut after it takes no other
        elif taken >= FEW and (self._new or spent >= SHARE * self._left or taken >= SHARE * ahead):
            self._revise(step, step + int(self.left * taken / spent))
            self._measure_from(step, now, spent / taken)

    @property
    def _new(self) -> bool:
        return len(self.course.totals) == 1

    def _measure_from(self, step: int, now: float, longest: float) -> None:
        self._mark, self._last, self._longest, self._left = (step, now), now, longest, self.left

    def _revise(self, step: int, total: int) -> None:
        self.course = self.course.revise(step, total)
        if self._write is not None:
            with self.clock.apart("save"):
                self._write(self.course)
