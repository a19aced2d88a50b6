"""What happens beside the loop after each step: telling, logging, saving, stopping. The training never notices."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import final

from realloc.finetune.arms.arm import Arm
from realloc.finetune.guide import Guide
from realloc.finetune.keep import Account, Keep
from realloc.finetune.scene import Scene
from realloc.train.loop import Clock
from realloc.train.memory import Peak, highest
from realloc.train.progress import TRAINING, Progress, Tell
from realloc.train.stop import Interrupted, Stop
from realloc.train.watch import SAVE_EVERY, SAVE_SHARE, TELL_EVERY, RunError


@final
class Watch:
    """Called after each step with the number of steps taken and the loss."""

    def __init__(
        self,
        scene: Scene,
        guide: Guide,
        arm: Arm,
        keep: Keep | None,
        *,
        tell: Tell,
        clock: Clock,
        peak: Peak,
        stop: Stop,
    ) -> None:
        self.scene, self.guide, self.arm, self.keep = scene, guide, arm, keep
        self.clock, self.peak = clock, peak
        self._tell, self._stop = tell, stop
        self._before = Account()
        self._loss, self._steps = 0.0, 0
        self._told, self._cost = 0.0, 0.0
        self._saved = time.perf_counter()

    def resume(self, account: Account) -> None:
        """Go on with the sums of an earlier process."""
        self._before = account
        self._loss, self._steps = account.epoch_loss, account.epoch_steps
        self.clock.resume(account.train_seconds, account.elsewhere)

    def __call__(self, step: int, loss: float) -> None:
        """See to everything that is due after a step."""
        if not math.isfinite(loss):
            raise RunError(f"the loss is {loss} at step {step:,}; lower the rate with --lr")
        self._loss += loss
        self._steps += 1
        whole = step % self.scene.train.per_epoch == 0
        if whole:
            self._end_epoch(step)
        now = time.perf_counter()
        over = self.guide.course.over(step)
        if now - self._told >= TELL_EVERY or over:
            self._told = now
            self._tell(self._progress(step, loss))
        since = now - self._saved
        due = since >= SAVE_SHARE * self._cost and (whole or since >= SAVE_EVERY)
        if self.keep is not None and (due or over or self._stop.asked):
            self.save(step)
        if self._stop.asked:
            folder = None if self.keep is None else str(self.keep.path)
            raise Interrupted(f"after step {step:,}", folder, saved=folder is not None)

    def account(self) -> Account:
        """The sums so far, over all processes of the run."""
        before, peak = self._before, self.peak
        return replace(
            before, train_seconds=self.clock.seconds, elsewhere=dict(self.clock.elsewhere),
            epoch_loss=self._loss, epoch_steps=self._steps,
            peak_bytes=highest(before.peak_bytes, peak.bytes),
            train_peak_bytes=highest(before.train_peak_bytes, peak.training_bytes),
            mapped_bytes=highest(before.mapped_bytes, peak.mapped_bytes),
        )  # fmt: skip

    def save(self, step: int) -> None:
        """Write a checkpoint, off the clock."""
        assert self.keep is not None
        self.peak.look()
        began = time.perf_counter()
        with self.clock.apart("save"):
            self.keep.save(step, self.arm, self.account())
        self._saved = time.perf_counter()
        self._cost = self._saved - began

    def _end_epoch(self, step: int) -> None:
        self.peak.look()
        if self.keep is not None:
            values = {"train_loss": self._loss / self._steps, "epoch": step // self.scene.train.per_epoch}
            self.keep.log.metric(step, values)
        self._loss, self._steps = 0.0, 0

    def _progress(self, step: int, loss: float) -> Progress:
        left = None if self.guide.length.seconds is None else max(0.0, self.guide.left)
        return Progress(TRAINING, step, max(step, self.guide.course.total), self.clock.seconds, loss, left=left)
