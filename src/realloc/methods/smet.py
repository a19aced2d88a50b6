"""SMET: moves whose new units start with their own moments, and learn slowly while young."""

from __future__ import annotations

from realloc.errors import ConfigError
from realloc.methods.method import Method
from realloc.observe.candidates import sampled
from realloc.schedule import cosine
from realloc.scores.magnitude import magnitude
from realloc.scores.random import random


def smet(density: float, *, drop: float = 0.2, young: int = 10) -> Method:
    """Release small |w|, acquire at random; a new unit's update is corrected and ramped by its own age.

    With one step count per tensor, Adam's first update of a slot whose moments are zero is about 3 times too large.
    Here the update is scaled by ``min(age / young, 1) * sqrt(1 - beta2^age) / (1 - beta1^age)`` for the first
    ``1 / (1 - beta2)`` steps of the unit.

    Args:
        density: share of the weights held, (0, 1].
        drop: share of a layer's held weights released at the first move; cosine to 0.005.
        young: steps of the ramp, 1 or more.

    Raises:
        ConfigError: ``young`` below 1.

    Reference: SMET (2606.00888). Where we differ: the ramp scales the update, not the stored moment; after the first
    ``1 / (1 - beta2)`` steps the plain update applies; the learning rate is not divided by the density (set it
    yourself); units are single weights unless ``.on(block=...)`` says otherwise.
    """
    if isinstance(young, bool) or not isinstance(young, int) or young < 1:
        raise ConfigError(f"young is {young!r}; it is a number of steps, 1 or more")
    return Method(
        "smet", density, reference="2606.00888", keep=magnitude, want=random, candidates=sampled(1.0), regrow=False,
        drop=cosine(drop, 0.005), moments="zero", young=young,
    )  # fmt: skip
