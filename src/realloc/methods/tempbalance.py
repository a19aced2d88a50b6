"""TempBalance: rate to the layers whose spectrum has a light tail, which are the least trained."""

from __future__ import annotations

from statistics import fmean

from realloc.allocate.rate_shares import hold_of
from realloc.methods.rate_method import RateMethod, RatePast
from realloc.methods.rate_score import RateScore
from realloc.scores.heavy_tail import power_law_exponent


def _weigh(past: RatePast) -> list[float]:
    found = [[a for a in map(power_law_exponent, group) if a is not None] for group in past.matrices]
    known = [fmean(alphas) for alphas in found if alphas]
    usual = fmean(known) if known else 1.0
    return [(fmean(alphas) if alphas else usual) ** 0.5 for alphas in found]


spectrum = RateScore("spectrum", _weigh, window=1, reference="2312.00359")
"""The square root of a layer's power-law exponent: a light tail is little trained. It reads weights only."""


def tempbalance(*, hold: str = "mean", most: float = 3.0) -> RateMethod:
    """Share the rate in proportion to the square root of each layer's power-law exponent.

    Source: Zhou et al. 2023, TempBalance (2312.00359), section 3.2, in its form ``tb_sqrt``, which keeps the sum of the
    rates. Where we differ: a layer of several matrices takes the mean of their exponents, and one of none (norms,
    biases) the mean of the others.

    Args:
        hold: what stays constant: "mean", "geometric" or "movement".
        most: no multiplier is above it or below its inverse.

    >>> tempbalance().hold.name
    'mean'
    """
    score = spectrum
    return RateMethod(
        "tempbalance", score.weigh, reference=score.reference, moves=True, hold=hold_of(hold), most=most,
        window=score.window,
    )  # fmt: skip
