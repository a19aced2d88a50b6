"""How good a model is on rows it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from realloc.train.dataset import Rows, Task

CHUNK = 128  # rows at a time, as many as in a usual batch, so that evaluation does not set the peak of memory

LossOf = Callable[[Tensor, Tensor], Tensor]
METRIC: dict[Task, str] = {"classification": "accuracy", "regression": "r2"}


class Quality(NamedTuple):
    """Loss and metric: accuracy in [0, 1] for classes, R^2 (1 is perfect, 0 is the mean's) for numbers."""

    loss: float
    metric: float


def loss_of(task: Task) -> LossOf:
    """The loss that is trained: cross-entropy, or the mean squared error of standardised labels."""
    if task == "classification":
        return nn.functional.cross_entropy
    return lambda out, y: nn.functional.mse_loss(out.squeeze(1), y)


@torch.no_grad()
def evaluate(model: nn.Module, rows: Rows, task: Task) -> Quality:
    """Measure loss and metric over all rows, in eval mode; leaves the model in the mode it was in."""
    training = model.training
    model.eval()
    loss, right, compute = 0.0, 0.0, loss_of(task)
    for first in range(0, len(rows.y), CHUNK):
        x, y = rows.at(slice(first, first + CHUNK))
        out = model(x)
        loss += float(compute(out, y)) * len(y)
        if task == "classification":
            right += float((out.argmax(1) == y).sum())
    model.train(training)
    n = len(rows.y)
    if task == "classification":
        return Quality(loss / n, right / n)
    spread = float(rows.y.double().var(correction=0))
    return Quality(loss / n, 1.0 - loss / n / spread if spread > 0 else 0.0)
