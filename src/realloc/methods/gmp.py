"""GMP: from dense to sparse by magnitude, nothing grows."""

from __future__ import annotations

from realloc.methods.method import Method, check_share
from realloc.schedule import cubic
from realloc.scores.magnitude import magnitude


def gmp(density: float) -> Method:
    """Prune by |w| from all weights to ``density`` of them along a cubic curve.

    It needs the dense model's memory at the start, so it is a reference for accuracy, not for the budget.

    Reference: To prune, or not to prune (1710.01878, equation 1). Where we differ: one global ranking over the layers
    where the paper prunes each layer to the same density.
    """
    check_share("density", density)
    return Method("gmp", density, reference="1710.01878", keep=magnitude, held=cubic(1.0, density))
