"""Every layer trains: the control of every method that chooses."""

from __future__ import annotations

from realloc.methods.layers import Chosen, LayerMethod, Turn


def full() -> LayerMethod:
    """Train all layers, the embeddings and the head, as without realloc.

    >>> full().moves
    False
    """

    def choose(turn: Turn) -> Chosen:
        return tuple(range(turn.count))

    return LayerMethod("full", choose, embeddings="lowest", cache=None)
