"""AutoFreeze: the lowest layers freeze, for good, once their summed gradient changes least."""

from __future__ import annotations

import math

from realloc.cache.settings import USUAL, Cache
from realloc.errors import ConfigError
from realloc.methods.layers import Chosen, LayerMethod, Turn


def autofreeze(percentile: float = 50.0, *, cache: Cache | None = USUAL) -> LayerMethod:
    """Freeze the prefix of layers whose gradient norm changes less than that of the others.

    Source: Liu et al. 2021, AutoFreeze (2102.01386): over each interval the gradients of a layer are summed;
    eta is the relative change of the sum's norm from one interval to the next; the layers below the first one whose eta
    is at or above the percentile of those that still train are frozen and never thawed. Where we differ: the norm is
    taken over every 16th weight, so that the sums cost 1/16 of the model, and the optimizer is not rebuilt.

    Args:
        percentile: of eta, 0 <= percentile < 100. By it something freezes at nearly every turn, since there is no
            absolute threshold: the paper's rule, kept.
        cache: of the frozen layers' output.

    Raises:
        ConfigError: not a percentile.

    >>> autofreeze(50).needs
    frozenset({'change'})
    """
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float)) or not 0 <= percentile < 100:
        raise ConfigError(f"percentile is {percentile!r}; use 0 <= percentile < 100")

    def choose(turn: Turn) -> Chosen:
        if turn.number == 0:
            return tuple(range(turn.count))
        changes = [(layer, turn.change[layer]) for layer in turn.on] if turn.change else []
        known = [(layer, eta) for layer, eta in changes if eta is not None]
        if len(known) < len(changes) or not known:
            return turn.on
        line = _percentile([eta for _, eta in known], percentile)
        first = next(layer for layer, eta in known if eta >= line)
        return tuple(layer for layer in turn.on if layer >= first)

    return LayerMethod(
        "autofreeze", choose, reference="2102.01386", moves=True, needs=frozenset({"change"}), embeddings="lowest",
        cache=cache,
    )  # fmt: skip


def _percentile(values: list[float], percent: float) -> float:
    """Linear between the two nearest, as numpy's."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
