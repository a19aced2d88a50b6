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

SCORES: Final = {one.name: one for one in (depth(), spectrum, relative_gradient, balance(), gain(), even)}


def rates(score: str | RateScore = "depth", *, hold: str = "mean", most: float = 3.0) -> RateMethod:
    """Share the rate in proportion to a score; the scheduler keeps its say, and the budget stays what it was.

    With the score "depth" it is `llrd`. That is the default because no score that measures did better, and it costs
    nothing: MiniLM on 30 intents +0.93 ± 2.15 points over one rate for all tuned anew, +0.93 ± 0.53 over one at its
    own rate, +1.69 ± 1.61 over the same shares on the wrong layers; a small convolutional net -0.05 ± 0.27 (five
    paired seeds, benchmarks/results/units.md). So nothing here surely beats one rate, tuned.

    Source: Howard and Ruder 2018 (1801.06146); the other scores are those of the methods named below.

    Args:
        score: "depth" (`llrd`), "spectrum" (`tempbalance`), "gradient" (`auto_rgn`), "balance" (`gradnorm`), "gain"
            (`loss_change`), "even" (control: every layer the scheduled rate), or a `RateScore` of your own.
        hold: what stays constant: "mean", "geometric" or "movement" (not with "depth" and "even", which decide before
            anything has moved).
        most: no multiplier is above it or below its inverse; above 1.

    Raises:
        ConfigError: no such score, another word, or a number out of range.

    >>> rates().moves, rates("spectrum").moves
    (False, True)
    """
    found = named_score(score, RateScore, SCORES)
    return RateMethod(
        "rates", found.weigh, reference=found.reference, moves=found.moves, hold=hold_of(hold), most=most,
        window=found.window,
    )  # fmt: skip
