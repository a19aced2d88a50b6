"""The top layers train, the rest is a frozen prefix whose output is computed once."""

from __future__ import annotations

from realloc.cache.settings import USUAL, Cache
from realloc.methods.layers import Chosen, LayerMethod, Turn, among, count_of


def topk(k: int = 2, *, cache: Cache | None = USUAL) -> LayerMethod:
    """Train the ``k`` layers nearest to the output, and the head; freeze the embeddings and the layers below.

    Source: the control of every freezing method; with cached activations as in AutoFreeze (2102.01386).
    A step costs 3 (L - k') of the 3 L units of full training, with k' = L - k layers below it frozen.

    Args:
        k: layers that train, 0 (the head alone) or more; at most all.
        cache: of the frozen layers' output; None: compute it anew each time.

    Raises:
        ConfigError: ``k`` is no such number; at `attach`, the model has fewer layers.

    >>> topk(2).name, topk(2).moves
    ('topk', False)
    """
    count_of("k", k, least=0)

    def choose(turn: Turn) -> Chosen:
        return tuple(range(turn.count - among("k", k, turn), turn.count))

    return LayerMethod("topk", choose, reference="2102.01386", cache=cache)
