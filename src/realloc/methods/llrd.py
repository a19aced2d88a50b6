"""LLRD: rates that fall from the head to the input, by one factor a layer. The prior that the others stand beside."""

from __future__ import annotations

from realloc.allocate.rate_shares import hold_of
from realloc.errors import ConfigError
from realloc.methods.rate_method import RateMethod, RatePast
from realloc.methods.rate_score import RateScore


def depth(decay: float = 0.9) -> RateScore:
    """``decay`` times the weight of the layer above, 0 < decay <= 1. It measures nothing, so it is asked once.

    Raises:
        ConfigError: no such factor.
    """
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise ConfigError(f"decay is {decay!r}; it is a factor from layer to layer: 0 < decay <= 1, such as 0.9")

    def weigh(past: RatePast) -> list[float]:
        return [float(decay) ** (len(past) - 1 - layer) for layer in range(len(past))]

    return RateScore("depth", weigh, moves=False, reference="1801.06146")


def llrd(decay: float = 0.9, *, hold: str = "mean", most: float = 10.0) -> RateMethod:
    """Give each layer ``decay`` times the rate of the one above it, once, at the start.

    Source: Howard and Ruder 2018, ULMFiT (1801.06146), section 3.2 (discriminative fine-tuning; their factor is
    1 / 2.6). Where we differ: shares are scaled so that the budget stays what it was; the paper only lowers rates.

    Args:
        decay: from layer to layer towards the input, 0 < decay <= 1.
        hold: what stays constant: "mean" or "geometric" (over the groups).
        most: no multiplier is above it or below its inverse.

    Raises:
        ConfigError: no such factor, or another word.

    >>> llrd(0.8).moves
    False
    """
    score = depth(decay)
    return RateMethod("llrd", score.weigh, reference=score.reference, hold=hold_of(hold), most=most)
