"""Auto-RGN: rate to the layers whose gradient is large beside their weights."""

from __future__ import annotations

from realloc.allocate.rate_shares import hold_of
from realloc.methods.rate_method import RateMethod, RatePast
from realloc.methods.rate_score import WINDOW, RateScore


def _weigh(past: RatePast) -> list[float]:
    return [g / w if w > 0 else 0.0 for g, w in zip(past.gradient, past.weight, strict=True)]


relative_gradient = RateScore("gradient", _weigh, reference="2210.11466")
"""The norm of a layer's gradient beside that of its weights, ``||g_l|| / ||theta_l||``."""


def auto_rgn(*, hold: str = "mean", most: float = 3.0, window: int = WINDOW) -> RateMethod:
    """Share the rate in proportion to ``||g_l|| / ||theta_l||``.

    Source: Lee et al. 2022, surgical fine-tuning (2210.11466), section 4.1. Where we differ: the paper scales the
    ratios to [0, 1], so that it only lowers rates, and takes them for each tensor and epoch; here the budget stays what
    it was, groups are layers, and the norms are root mean squares over ``window`` steps.

    Args:
        hold: what stays constant: "mean", "geometric" or "movement".
        most: no multiplier is above it or below its inverse.
        window: steps up to a decision that are measured.

    >>> auto_rgn().moves
    True
    """
    score = relative_gradient
    return RateMethod(
        "auto_rgn", score.weigh, reference=score.reference, moves=True, hold=hold_of(hold), most=most, window=window
    )
