"""ITOP: RigL or SET with fewer, larger moves, so that more of the layer is looked at over the run."""

from __future__ import annotations

from typing import Literal

from realloc.errors import ConfigError
from realloc.methods.method import Method
from realloc.observe.candidates import everything, sampled
from realloc.schedule import cosine
from realloc.scores.gradient import gradient
from realloc.scores.magnitude import magnitude
from realloc.scores.random import random


def itop(density: float, *, grow: Literal["gradient", "random"] = "gradient", drop: float = 0.5) -> Method:
    """Release the ``drop`` share of smallest |w|, acquire by gradient (RigL-ITOP) or at random (SET-ITOP).

    What makes it ITOP is the schedule: moves far apart, up to the end of the run (24 to 65 moves in all in the paper):
    pass ``realloc.every(steps // 40, until=1.0, total=steps)``.

    Args:
        density: share of the weights held, (0, 1].
        grow: "gradient" or "random".
        drop: share released at the first move; cosine to 0.005.

    Raises:
        ConfigError: an unknown ``grow``.

    Reference: In-Time Over-Parameterization (2102.02887, section 3). Where we differ: growth is exact; the authors
    draw each random place on its own, which keeps the budget only on average.
    """
    if grow not in ("gradient", "random"):
        raise ConfigError(f"grow is {grow!r}; use 'gradient' or 'random'")
    guided = grow == "gradient"
    return Method(
        "itop", density, reference="2102.02887", keep=magnitude, want=gradient if guided else random,
        candidates=everything() if guided else sampled(1.0), regrow=guided, drop=cosine(drop, 0.005),
    )  # fmt: skip
