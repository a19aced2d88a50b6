"""SET: release small weights, acquire at random."""

from __future__ import annotations

from realloc.methods.method import Method
from realloc.observe.candidates import sampled
from realloc.schedule import constant
from realloc.scores.random import random
from realloc.scores.signed_magnitude import signed_magnitude


def sparse_evolution(density: float, *, drop: float = 0.3) -> Method:
    """Release the ``drop`` share closest to zero among the positive and among the negative weights, acquire at random.

    Reference: SET (1707.04780, algorithm 1; zeta 0.3). Where we differ: new weights start at zero instead of a new
    random value, so that the function is preserved; and ERK instead of ER, equal for linear layers.
    """
    return Method(
        "sparse_evolution", density, reference="1707.04780",
        keep=signed_magnitude, want=random, candidates=sampled(1.0), regrow=False, drop=constant(drop),
    )  # fmt: skip
