"""SHiRA: a sparse delta whose places are chosen once."""

from __future__ import annotations

from functools import partial
from typing import Final, Literal

from realloc.errors import ConfigError
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.method import Method
from realloc.scores.magnitude import magnitude
from realloc.scores.random import random
from realloc.scores.score import Score

PLACE: Final = {"random": random, "magnitude": magnitude, "gradient": random}


def shira(
    budget: int | None = None,
    *,
    density: float | None = None,
    by: Literal["random", "magnitude", "gradient"] = "random",
) -> DeltaMethod:
    """Hold a delta of zeros over frozen linear layers, at places that never move: what moving must beat.

    "random" and "magnitude" (largest |W|) give each layer a number in proportion to in + out, as LoRA of one rank does;
    "gradient" takes the places of largest |gradient| over all layers together, after `realloc.calibrate`.

    Args:
        budget: parameters.
        density: share of the weights of the layers that take part, instead of ``budget``.
        by: how places are chosen.

    Raises:
        ConfigError: an unknown ``by``, or neither or both of ``budget`` and ``density``.

    Reference: SHiRA (2406.13175, section 3.1: SHiRA-Rand, -WM and -Grad). Where we differ: by gradient the layers share
    one budget, where the authors give each its own; no dense weight is cloned and no dense gradient made while it
    trains.

    >>> shira(budget=300_000, by="magnitude").asked
    '300000 parameters, places by magnitude'
    """
    if by not in PLACE:
        raise ConfigError(f"by is {by!r}; use 'random', 'magnitude' or 'gradient'")
    rule = partial(_rule, place=PLACE[by])
    begin: Literal["rule", "gradient"] = "gradient" if by == "gradient" else "rule"
    return DeltaMethod("shira", rule, budget, density, begin, "2406.13175")


def _rule(density: float, place: Score) -> Method:
    return Method("shira", density, place=place)
