"""Ranks grow where the gradient asks for them, by parameter; evenly where it does not tell the layers apart."""

from __future__ import annotations

from realloc.errors import ConfigError
from realloc.methods.rank_method import RankMethod
from realloc.schedule import linear
from realloc.scores.rank_gain import rank_gain


def rank_gradient(
    rank: int | None = None,
    *,
    budget: int | None = None,
    cap: int | None = None,
    scale: float = 1.0,
    start: float = 0.5,
    margin: float = 2.0,
) -> RankMethod:
    """Start with a part of the budget in uniform ranks; add the rest where a rank gains most per parameter.

    Nothing is ever cut, and a new rank changes no output, so no move disturbs what is learnt; early steps are cheaper.
    The gain of a new rank is the squared singular value of the weight's gradient beyond what the held ranks span, per
    parameter. Where the halves of the batch disagree, or the layers' gains lie within ``margin``, the layer with the
    fewest ranks comes first: uniform is the answer when the evidence does not separate the layers.

    Args:
        rank: ranks of each layer at the end, on average by parameters.
        budget: parameters at the end, instead of ``rank``.
        cap: most ranks of a layer; None: twice ``rank``.
        scale: factor of the ranks' part, alpha / r.
        start: share of the budget held at the start, 0 to 1; it rises linearly.
        margin: ratio of the layers' quartiles from which on their gains count as different, 1 or more.

    Raises:
        ConfigError: ``start`` or ``margin`` out of range.

    Reference: the gradient as a guide to ranks: GoRA (2502.12171). Where we differ: over the run instead of once before
    it, by singular values instead of |W G|, per parameter, and with the rule above, for which 2605.07366 gives the
    reason: ranks in proportion to gradients lost to uniform ones where the layers' importance lay within 2.2 times.
    """
    for name, value, low, high in (("start", start, 0.0, 1.0), ("margin", margin, 1.0, 1e6)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ConfigError(f"{name} is {value!r}; use {low:g} to {high:g}")
    return RankMethod(
        "rank_gradient", rank, budget, cap=cap, scale=scale, reference="2502.12171", want=rank_gain(margin),
        held=linear(start, 1.0),
    )  # fmt: skip
