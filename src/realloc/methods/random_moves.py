"""Control: the same moves, chosen blindly."""

from __future__ import annotations

from realloc.methods.method import Method
from realloc.observe.candidates import sampled
from realloc.schedule import cosine
from realloc.scores.random import random


def random_moves(density: float, *, drop: float = 0.3) -> Method:
    """Release at random, acquire at random, as many as RigL would: what choosing well must beat."""
    return Method(
        "random_moves", density, keep=random, want=random, candidates=sampled(1.0), regrow=False, drop=cosine(drop)
    )
