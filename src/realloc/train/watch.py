"""What happens beside the loop after each step: telling, validating, saving, stopping. The training never notices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from realloc.errors import ReallocError
from realloc.handle import Handle
from realloc.train.evaluate import Quality
from realloc.train.length import Length
from realloc.train.loop import Clock, Trainee
from realloc.train.memory import Peak
from realloc.train.progress import TRAINING, Progress, Tell
from realloc.train.stop import Interrupted, Stop

TELL_EVERY = 0.2  # seconds
SAVE_EVERY = 10.0  # seconds, and at the end of each epoch
SAVE_SHARE = 10  # short epochs: saving takes at most one part in so many of the time
OVERRUN = 1.25  # a run on a time budget ends here at the latest, whatever was measured at its start


@final
class RunError(ReallocError, RuntimeError):
    """The training itself failed: nothing is wrong with the input's form or with the record."""


@final
class OutOfTime(Exception):
    """The time budget is spent before the steps are: the machine became slower than it was at the start."""


@final
@dataclass
class Tally:
    """What a run counts as it goes, saved with each checkpoint."""

    epoch_loss: float = 0.0
    epoch_steps: int = 0
    validation: float | None = None


@final
@dataclass(frozen=True, eq=False)
class Doings:
    """What the watch may do, given by the run. ``save`` and ``note`` are None where there is no run folder."""

    tell: Tell
    validate: Callable[[], Quality]
    save: Callable[[int], None] | None = None
    note: Callable[[int, Mapping[str, object]], None] | None = None
    folder: str | None = None
    most_seconds: float | None = None


@final
class Watch:
    """Called after each step with the number of steps taken and the loss."""

    def __init__(
        self, trainee: Trainee, length: Length, doings: Doings, *, tally: Tally, clock: Clock, peak: Peak, stop: Stop
    ) -> None:
        self.trainee, self.length, self.doings, self.tally = trainee, length, doings, tally
        self.clock, self.peak, self.stop = clock, peak, stop
        self.step = 0
        self._told = 0.0
        self._saved, self._cost = time.perf_counter(), 0.0

    def __call__(self, step: int, loss: Tensor) -> None:
        """See to everything that is due after a step."""
        current, self.step = float(loss), step
        self.tally.epoch_loss += current
        self.tally.epoch_steps += 1
        over = step % self.length.per_epoch == 0 or step == self.length.total
        if over:
            self._end_epoch(step)
        now = time.perf_counter()
        if now - self._told >= TELL_EVERY or over:
            self._told = now
            self.doings.tell(self.progress(step, current))
        since = now - self._saved
        last_step = step == self.length.total
        if self.stop.asked or last_step or since >= SAVE_EVERY or (over and since >= SAVE_SHARE * self._cost):
            self._save(step)
        if self.stop.asked:
            raise Interrupted(f"after step {step:,}", self.doings.folder, saved=True)
        limit = self.doings.most_seconds
        if limit is not None and self.clock.seconds > limit * OVERRUN and step < self.length.total:
            raise OutOfTime

    def progress(self, step: int, loss: float | None) -> Progress:
        """Say where the run stands."""
        handle = self.trainee.handle
        moves = handle.moves if handle else 0
        sites = handle.sites if isinstance(handle, Handle) else {}
        density = {name: site.held / site.capacity for name, site in sites.items()}
        seconds, total, metric = self.clock.seconds, self.length.total, self.tally.validation
        return Progress(TRAINING, step, total, seconds, loss, metric, moves, density)

    def _end_epoch(self, step: int) -> None:
        tally = self.tally
        mean = tally.epoch_loss / max(1, tally.epoch_steps)
        if not math.isfinite(mean):
            raise RunError(f"the loss became {mean} in the epoch that ended at step {step:,}; lower --lr")
        self.peak.look()
        with self.clock.apart("evaluate"):
            found = self.doings.validate()
        tally.validation, tally.epoch_loss, tally.epoch_steps = found.metric, 0.0, 0
        if self.doings.note is not None:
            values = {"train_loss": mean, "validation_loss": found.loss, "validation_metric": found.metric}
            self.doings.note(step, values)

    def _save(self, step: int) -> None:
        if self.doings.save is None:
            return
        self.peak.look()
        before = time.perf_counter()
        with self.clock.apart("save"):
            self.doings.save(step)
        self._saved = time.perf_counter()
        self._cost = self._saved - before
