"""Every parameter trains: what the others are measured against."""

from __future__ import annotations

from realloc.finetune.arms.arm import Arm, Order, optimizer_of
from realloc.finetune.weights import Loaded


def full(loaded: Loaded, order: Order) -> Arm:
    """Train all that the task reads."""
    return Arm(loaded.model, optimizer_of(loaded, order.rate))
