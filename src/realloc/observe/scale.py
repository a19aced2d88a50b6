"""What was done to a gradient between its backward and the update: unscaled, clipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import Tensor

from realloc.observe.gradients import GradientSource

NEAR = 1 / 128  # rounding parts the two by less, also in half precision


def scale_of(known: Iterable[tuple[Callable[[], Tensor], Tensor, GradientSource]]) -> float:
    """The factor from gradients as backwards brought them to those the optimizer sees, for one pool.

    It is read off the largest held gradient. A power of two (a GradScaler's scale, or 1) is met exactly, so that
    decisions do not depend on the scale.

    Args:
        known: for each site how to get its places int64 ``[u]`` (asked of one site only), the gradient of the held
            units as the optimizer sees it ``[u, size]``, and where the gradient as it was brought comes from.
    """
    best: tuple[float, Callable[[], Tensor], Tensor, GradientSource] | None = None
    for places, gradient, source in known:
        peak = float(gradient.abs().max()) if gradient.numel() else 0.0
        if peak > (best[0] if best else 0.0):
            best = peak, places, gradient, source
    if best is None:
        return 1.0
    _, places, gradient, source = best
    spot = int(gradient.abs().argmax())
    unit, slot = divmod(spot, gradient.shape[1])
    seen = float(gradient[unit, slot])
    brought = float(source.at(places()[unit : unit + 1])[0, slot])
    ratio = seen / brought if brought else 1.0
    if not (math.isfinite(ratio) and ratio > 0):
        return 1.0
    power = 2.0 ** round(math.log2(ratio))
    return power if abs(ratio / power - 1) < NEAR else ratio
