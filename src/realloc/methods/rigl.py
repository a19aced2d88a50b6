"""RigL: release small weights, acquire where the gradient is large."""

from __future__ import annotations

from realloc.methods.method import Method
from realloc.schedule import cosine
from realloc.scores.gradient import gradient
from realloc.scores.magnitude import magnitude


def rigl(density: float, *, drop: float = 0.3) -> Method:
    """Release the ``drop`` share of smallest |w| per layer, acquire as many where |gradient| is largest.

    The share decays by a cosine to zero over the schedule; new weights start at zero, so the function is preserved up
    to what was released. A weight released and acquired again in the same move keeps its value and moments.

    Args:
        density: share of the weights held, (0, 1].
        drop: share of a layer's held weights released at the first move, (0, 1).

    Reference: RigL (1911.11134, algorithm 1 and section 3; alpha 0.3, ERK). Where we differ: the move follows the
    optimizer step instead of replacing it, and it looks at the gradient of that step.
    """
    return Method("rigl", density, reference="1911.11134", keep=magnitude, want=gradient, drop=cosine(drop))
