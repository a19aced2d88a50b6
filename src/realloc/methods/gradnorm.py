"""GradNorm, over layers: rate to those whose gradient is small, so that all are heard."""

from __future__ import annotations

from realloc.allocate.rate_shares import hold_of
from realloc.methods.rate_method import RateMethod, RatePast, above
from realloc.methods.rate_score import WINDOW, RateScore


def balance(alpha: float = 0.5) -> RateScore:
    """``(mean ||g|| / ||g_l||)^alpha``: more for layers whose gradient is small. ``alpha`` above 0.

    Raises:
        ConfigError: no such exponent.
    """
    above("alpha", alpha, 0)

    def weigh(past: RatePast) -> list[float]:
        mean = sum(past.gradient) / len(past)
        return [(mean / g) ** alpha if g > 0 else 1.0 for g in past.gradient]

    return RateScore("balance", weigh, reference="1711.02257")


def gradnorm(alpha: float = 0.5, *, hold: str = "mean", most: float = 3.0, window: int = WINDOW) -> RateMethod:
    """Share the rate in proportion to ``(mean ||g|| / ||g_l||)^alpha``.

    Source: Chen et al. 2018, GradNorm (1711.02257), of which it keeps two ideas: norms of gradients are brought towards
    their mean, and the weights are scaled to a constant sum (section 3.2). Where we differ: it is about layers, not
    about tasks, and the exponent acts on the norms themselves, since layers have no training rate of their own.

    Args:
        alpha: 0 would leave rates alone, 1 makes rate times norm equal; above 0.
        hold: what stays constant: "mean", "geometric" or "movement".
        most: no multiplier is above it or below its inverse.
        window: steps up to a decision that are measured.

    Raises:
        ConfigError: no such exponent, or another word.

    >>> gradnorm().reference
    '1711.02257'
    """
    score = balance(alpha)
    return RateMethod(
        "gradnorm", score.weigh, reference=score.reference, moves=True, hold=hold_of(hold), most=most, window=window
    )
