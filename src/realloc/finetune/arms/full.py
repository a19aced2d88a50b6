"""Every parameter trains: what the others are measured against."""

from __future__ import annotations

from realloc.finetune.arms.arm import Arm, Order, optimizer_of
from realloc.finetune.arms.rows import touched
from realloc.finetune.weights import Loaded


def full(loaded: Loaded, order: Order) -> Arm:
    """Train all that the task reads; of the token table the rows that the texts touch, which is the same."""
    optimizer = optimizer_of(loaded, order.rate)
    return Arm(loaded.model, optimizer, rows=touched(loaded, optimizer, order))
