"""The training loop of fine-tuning: a user's own plain loop. realloc has no line inside it."""

from __future__ import annotations

import math
import time
from typing import Final

import torch
from torch import nn

from realloc.finetune.aim import Aim
from realloc.finetune.arms import Arm
from realloc.finetune.batches import Batches
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.pace import Length, set_rate
from realloc.train.progress import TRAINING, Progress, Tell
from realloc.train.stop import Interrupted, Stop
from realloc.train.watch import RunError

CLIP: Final = 1.0


def fit(
    arm: Arm, batches: Batches, aim: Aim, length: Length, config: FinetuneConfig, clock: float, tell: Tell, stop: Stop
) -> int:
    """Train to the end of ``length``. Returns the steps taken.

    Raises:
        RunError: the loss is not finite.
        Interrupted: Ctrl-C, between two steps.
    """
    model, optimizer = arm.model, arm.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.manual_seed(config.seed)
    model.train()
    step = 0
    while not length.over(step, time.perf_counter() - clock):
        batch, labels = batches.at(step)
        set_rate(optimizer, length.progress(step + 1, time.perf_counter() - clock))
        losses, _ = aim.losses(model, batch, labels)
        loss = losses.mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], CLIP)
        optimizer.step()
        if arm.update is not None:
            arm.update(step)
        step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(f"the loss is {value} at step {step}; lower the rate with --lr")
        total = step if length.seconds is not None else length.steps
        tell(Progress(TRAINING, step=step, total=total, seconds=time.perf_counter() - clock, loss=value))
        if stop.asked:
            raise Interrupted(f"at step {step}", None)
    return step
