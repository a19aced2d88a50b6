"""Layers share a fixed budget of learning rate by what it is worth to them."""

from __future__ import annotations

from typing import Final

from realloc.allocate.rate_shares import hold_of
from realloc.methods.auto_rgn import relative_gradient
from realloc.methods.gradnorm import balance
from realloc.methods.llrd import depth
from realloc.methods.loss_change import gain
from realloc.methods.named_score import named_score
from realloc.methods.rate_method import RateMethod
from realloc.methods.rate_score import RateScore, even
from realloc.methods.tempbalance import spectrum

SCORES: Final = {one.name: one for one in (spectrum, relative_gradient, balance(), gain(), depth(), even)}


def rates(score: str | RateScore = "spectrum", *, hold: str = "mean", most: float = 3.0) -> RateMethod:
    """Share the rate in proportion to a score; the scheduler keeps its say, and the budget stays what it was.

    With the score "spectrum" it is `tempbalance`: a choice by its paper. No score stands beside "even" in our
    benchmarks yet; one rate for all, tuned anew, is what each has to beat.

    Source: TempBalance (2312.00359); the other scores are those of the methods named below.

    Args:
        score: "spectrum" (`tempbalance`), "gradient" (`auto_rgn`), "balance" (`gradnorm`), "gain" (`loss_change`),
            "depth" (`llrd`), "even" (control: every layer the scheduled rate), or a `RateScore` of your own.
        hold: what stays constant: "mean", "geometric" or "movement" (not with "depth" and "even", which decide before
            anything has moved).
        most: no multiplier is above it or below its inverse; above 1.

    Raises:
        ConfigError: no such score, another word, or a number out of range.

    >>> rates().moves, rates("even").moves
    (True, False)
    """
    found = named_score(score, RateScore, SCORES)
    return RateMethod(
        "rates", found.weigh, reference=found.reference, moves=found.moves, hold=hold_of(hold), most=most,
        window=found.window,
    )  # fmt: skip
