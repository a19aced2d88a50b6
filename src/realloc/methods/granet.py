"""GraNet: start denser, prune globally down to the budget, regenerate at each move."""

from __future__ import annotations

from realloc.errors import ConfigError
from realloc.methods.method import Method, check_share
from realloc.schedule import cosine, cubic
from realloc.scores.gradient import gradient
from realloc.scores.magnitude import magnitude


def granet(density: float, *, start: float = 0.5, drop: float = 0.5) -> Method:
    """Prune by one global ranking of |w| along a cubic curve, then release and acquire as RigL does in each layer.

    The pool keeps the length it has at the start; freed slots are parked until ``handle.compact()``.

    Args:
        density: share of the weights held at the end, (0, 1].
        start: share held at the start, density to 1.
        drop: share of a layer's held weights regenerated at the first move; cosine to 0.005.

    Raises:
        ConfigError: ``start`` below ``density``.

    Reference: GraNet (2106.10404, section 4). Where we differ: the density falls over the whole schedule, and
    regeneration ends with it; the authors stop pruning at about 70 % of the run and regenerate to its end.
    """
    check_share("density", density)
    check_share("start", start)
    if start < density:
        raise ConfigError(f"start is {start}, below density {density}; use density <= start <= 1")
    return Method(
        "granet", density, reference="2106.10404", keep=magnitude, want=gradient,
        held=cubic(start, density), drop=cosine(drop, 0.005),
    )  # fmt: skip
