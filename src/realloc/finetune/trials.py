"""focus going on: at a quarter and at half of a long run, one layer more and one less are tried on the held-out texts.

A trial is a few steps on the batches that come next, with the same random numbers; then all is taken back and the run
goes on as it would have. When it has taken those steps too, both are judged on the held-out texts, text by text, each
by the mean of its weights over the later half of the steps, since single steps of a high rate differ by more than
layers do. What such a trial can and cannot tell is measured in docs/adr/0017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, final

import torch
from torch import nn

from realloc.allocate.prefix import paired
from realloc.finetune.arms.arm import Arm
from realloc.finetune.fit import stepped
from realloc.finetune.guide import Guide
from realloc.finetune.scene import Scene
from realloc.layer_handle import LayerHandle
from realloc.pool.snapshot import Mean
from realloc.trial import Trial

PARTS: Final = (0.25, 0.5)  # of the run: one layer more at the first, one less at the second
LEAST: Final = 64  # steps of a trial: up to 24 were found to point the wrong way (docs/adr/0017)
SURE: Final = 2.0  # standard errors by which a layer more must be better
SLACK: Final = 0.01  # of the loss: by so much one layer less may be worse, and surely not by more
DEEPER: Final = 0  # which of them asks for one layer more


def trial_steps(share: float, total: int) -> int:
    """Steps of one trial; 0 where the run is too short for one.

    >>> trial_steps(0.04, 2000), trial_steps(0.04, 1599)
    (80, 0)
    """
    steps = int(share * total)
    return steps if steps >= LEAST else 0


@final
class Trials:
    """Called after each step with the steps taken.

    Args:
        scene: of the run; its held-out texts judge.
        arm: that is trained, with a method that never moves by itself.
        guide: knows how long the run is.
        share: of the run that one trial may take.
        note: keeps what was found.
    """

    def __init__(
        self, scene: Scene, arm: Arm, guide: Guide, share: float, note: Callable[[int, Mapping[str, object]], None]
    ) -> None:
        assert isinstance(arm.handle, LayerHandle)
        self._scene, self._arm, self._guide, self._share, self._note = scene, arm, guide, share, note
        self._handle = arm.handle
        self._done = 0
        self.words: list[str] = []
        self._trial: Trial | None = None  # that ran, and is judged at step ``_until``
        self._until, self._length = 0, 0
        self._losses = torch.zeros(0)  # of its held-out texts
        self._mean: Mean | None = None  # of the run's own weights meanwhile

    def __call__(self, step: int) -> None:
        """Begin what is due, or judge what has come to its end."""
        if self._trial is not None:
            assert self._mean is not None
            if step > self._until - self._length + self._length // 2:
                self._mean.add()
            if step == self._until:
                self._judge(step, self._trial, self._mean)
            return
        total = self._guide.course.total
        if self._done < len(PARTS) and step >= PARTS[self._done] * total:
            length, other = trial_steps(self._share, total), self._other()
            if length and other and step + length < total:
                self._begin(step, length, other)
            else:
                self._done += 1

    def _other(self) -> tuple[int, ...]:
        on = tuple(number for number, trains in enumerate(self._handle.layers.values()) if trains)
        if self._done == DEEPER:
            return (on[0] - 1, *on) if on and on[0] > 0 else ()
        return on[1:]

    def _begin(self, step: int, length: int, other: tuple[int, ...]) -> None:
        arm, scene, course = self._arm, self._scene, self._guide.course
        with torch.random.fork_rng(devices=[]), self._handle.trial(other) as trial:
            mean = Mean(trial.parameters)
            for number in range(length):
                stepped(arm, scene.train, scene.aim, course, step + number)
                if number >= length // 2:
                    mean.add()
            with mean.shown():
                self._losses = scene.aim.judge(arm.model, scene.held).losses
        self._trial, self._until, self._length = trial, step + length, length
        self._mean = Mean(_training(arm.model))

    def _judge(self, step: int, trial: Trial, mean: Mean) -> None:
        with mean.shown():
            own = self._scene.aim.judge(self._arm.model, self._scene.held).losses
        gain, error = paired(own, self._losses)
        if self._done == DEEPER:
            better = gain > SURE * error
        else:
            better = gain - SURE * error > -SLACK * float(own.mean())
        if better:  # a loss that is no number compares as false
            trial.adopt()
        what = "one layer more" if self._done == DEEPER else "one layer less"
        self.words.append(
            f"after step {step:,} {what} was {'taken' if better else 'tried and left'}: held-out loss {-gain:+.4f} ± "
            f"{SURE * error:.4f}"
        )
        self._note(step, {"trial": what, "taken": better, "gain": gain, "error": error, "steps": self._length})
        self._trial, self._mean, self._losses = None, None, torch.zeros(0)
        self._done += 1

    # for a checkpoint -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was found so far, and a trial that waits to be judged."""
        waits = self._trial is not None and self._mean is not None
        return {
            "done": self._done, "words": list(self.words), "until": self._until, "length": self._length,
            "trial": self._trial.state_dict() if self._trial else None,
            "losses": self._losses if waits else None,
            "sums": dict(self._mean.sums) if self._mean else None, "count": self._mean.count if self._mean else 0,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take it back."""
        self._done, self.words = state["done"], list(state["words"])
        self._until, self._length = state["until"], state["length"]
        self._trial, self._mean, self._losses = None, None, torch.zeros(0)
        if state["trial"] is not None:
            self._trial = self._handle.trial(state["trial"]["layers"])
            self._trial.load_state_dict(state["trial"])
            self._mean = Mean(_training(self._arm.model), state["sums"], state["count"])
            self._losses = state["losses"]


def _training(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
