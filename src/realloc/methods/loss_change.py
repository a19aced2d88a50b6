"""Loss-change allocation: rate to the layers whose movement buys the most loss."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

from realloc.allocate.rate_shares import hold_of
from realloc.methods.rate_method import RateMethod, RatePast, above
from realloc.methods.rate_score import WINDOW, RateScore


def gain(kappa: float = 0.5) -> RateScore:
    """``exp(kappa z)``, z the standardised logarithm of loss bought for each unit of movement. ``kappa`` above 0.

    Raises:
        ConfigError: no such exponent.
    """
    above("kappa", kappa, 0)

    def weigh(past: RatePast) -> list[float]:
        bought = [less / moved if moved > 0 else 0.0 for less, moved in zip(past.gain, past.movement, strict=True)]
        known = [math.log(one) for one in bought if one > 0]
        if len(known) < 2 or not (spread := pstdev(known)) > 0:
            return [1.0] * len(past)
        middle, least = fmean(known), min(known)
        return [math.exp(kappa * ((math.log(b) if b > 0 else least) - middle) / spread) for b in bought]

    return RateScore("gain", weigh, reference="1909.01440")


def loss_change(kappa: float = 0.5, *, hold: str = "movement", most: float = 3.0, window: int = WINDOW) -> RateMethod:
    """Share the rate by ``exp(kappa z)``, z the standardised logarithm of loss bought for each unit of movement.

    A step lowers the loss by ``-<g_l, d theta_l>`` in a layer, to first order, for a movement of ``||d theta_l||^2``.

    Source: Lan et al. 2019, loss change allocation (1909.01440), equation 3 in its first-order form, over the steps of
    the window. The rule that turns it into shares is ours. Rewards over so few steps choose rates that are too small
    (1803.02021), so the total is never its choice.

    Args:
        kappa: how far shares part; above 0.
        hold: what stays constant: "movement" (relative to the weights), "mean" or "geometric".
        most: no multiplier is above it or below its inverse.
        window: steps up to a decision that are measured.

    Raises:
        ConfigError: no such exponent, or another word.

    >>> loss_change().hold.needs_movement
    True
    """
    score = gain(kappa)
    return RateMethod(
        "loss_change", score.weigh, reference=score.reference, moves=True, hold=hold_of(hold), most=most, window=window
    )
