"""The training loop of fine-tuning: a user's own plain loop. realloc has no line inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import nn

from realloc.finetune.aim import Aim
from realloc.finetune.arms.arm import Arm
from realloc.finetune.batches import Batches
from realloc.finetune.guide import Guide
from realloc.finetune.pace import Course, set_rate

CLIP: Final = 1.0


def fit(arm: Arm, batches: Batches, aim: Aim, guide: Guide, first: int, after: Callable[[int, float], None]) -> int:
    """Train from step ``first`` as long as ``guide`` says; ``after`` gets the steps taken and the loss. Returns them.

    At least one step is taken, however short the time is.
    """
    arm.model.train()
    for since in range(1, first + 1):  # of a run that is gone on with: what was revised before
        _revise(arm, guide.course, since)
    step = first
    while not step or not guide.course.over(step):
        loss = stepped(arm, batches, aim, guide.course, step)
        step += 1
        if arm.moved is not None:
            arm.moved(step)
        guide.after(step)
        _revise(arm, guide.course, step)
        after(step, loss)
    return step


def _revise(arm: Arm, course: Course, step: int) -> None:
    total = course.set_at(step)
    if total is not None and arm.revised is not None and not course.over(step):
        arm.revised(step, total)


def stepped(arm: Arm, batches: Batches, aim: Aim, course: Course, step: int) -> float:
    """Take one step; returns the loss of its batch."""
    model, optimizer = arm.model, arm.optimizer
    batch, labels = batches.at(step)
    set_rate(optimizer, course.progress(step))
    losses, _ = aim.losses(model, batch, labels)
    loss = losses.mean()
    whole = loss if arm.penalty is None else loss + arm.penalty()
    optimizer.zero_grad()
    whole.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(
        [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None], CLIP
    )
    optimizer.step()
    return float(loss.detach())
