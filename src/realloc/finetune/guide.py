"""Turning a budget of seconds into steps while a run goes on; each revision is written down before it is followed.

Steps are not alike: a long text takes longer, a cache fills in the first epoch, frozen layers come and go. So seconds
are counted by the token, the batches to come are known, and the number of steps is set anew from those last measured:
after the first few, and whenever a quarter of what was left is gone.
A resume reads what was written and follows it step by step, so it is bit-equal as far as the written course goes; only
beyond the last revision does the clock decide again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Final, Protocol, final

from realloc.errors import ConfigError
from realloc.finetune.pace import Course, Length
from realloc.train.loop import Clock

FEW: Final = 4  # steps that a revision is made from, at the least; a process's first step loads code and is left out
SHARE: Final = 0.25  # of the seconds, or of the steps, that were left at a revision: after it comes the next
SPARE: Final = 1.2  # times a step's seconds must be left for it to be taken


class Batched(Protocol):
    """What is known of the batches to come."""

    per_epoch: int

    def padded(self, step: int) -> int:
        """Tokens of a step's batch, padding included."""


@final
class Guide:
    """Knows at each step how long the run is.

    Args:
        length: of the run, as it was decided.
        clock: of the run; everything on it counts against the seconds.
        batches: that the run trains on.
        course: that an earlier process wrote down; None: a new one.
        write: keeps a course; called off the clock.
    """

    def __init__(
        self,
        length: Length,
        clock: Clock,
        batches: Batched,
        course: Course | None = None,
        write: Callable[[Course], None] | None = None,
    ) -> None:
        self.length, self.clock = length, clock
        self.course = Course(((0, length.steps),)) if course is None else course
        self._batches, self._write = batches, write
        self._mark: tuple[int, float] | None = None  # step and seconds from which steps are measured
        self._tokens, self._left = 0, 0.0  # of the steps since the mark; seconds that were left at it
        self._token: float | None = None  # seconds that one took, when last measured

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
                f"the budget of {budget:g} s pays for no step: what comes before the first took {spent:.3g} s, and "
                f"judging {texts:,} held-out texts will take {self.length.reserve:.3g} s; give --budget more than "
                f"{budget - self.left:.3g} s"
            )

    def after(self, step: int) -> None:
        """After each step, with the number of steps taken: revise where it is time to."""
        if self.length.seconds is None or step <= self.course.revised:
            return
        now = self.clock.seconds
        if self._mark is None:
            self._measure_from(step, now)
            return
        self._tokens += self._batches.padded(step - 1)
        taken, spent = step - self._mark[0], now - self._mark[1]
        ahead = self.course.total - self._mark[0]
        due = self._token is None or spent >= SHARE * self._left or taken >= SHARE * ahead
        token = spent / self._tokens if taken >= FEW or self._token is None else self._token
        if self.course.over(step) or self.left < SPARE * token * self._batches.padded(step):
            self._revise(step, step)  # the end is written down too: a resume of what was cut after it takes no other
        elif taken >= FEW and due:
            self._revise(step, step + self._pays_for(step, self.left / token))
            self._measure_from(step, now)
            self._token = token

    def _pays_for(self, step: int, tokens: float) -> int:
        """How many steps from one on have so many tokens together: by epochs, the last one step by step."""
        epoch = [self._batches.padded(step + i) for i in range(self._batches.per_epoch)]
        epochs, rest = divmod(tokens, sum(epoch))
        return int(epochs) * len(epoch) + sum(sofar <= rest for sofar in accumulate(epoch))

    def _measure_from(self, step: int, now: float) -> None:
        self._mark, self._tokens, self._left = (step, now), 0, self.left

    def _revise(self, step: int, total: int) -> None:
        self.course = self.course.revise(step, total)
        if self._write is not None:
            with self.clock.apart("save"):
                self._write(self.course)
