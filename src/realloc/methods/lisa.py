"""LISA: a few layers, drawn anew in turn; embeddings and head always train."""

from __future__ import annotations

import torch

from realloc.methods.layers import Chosen, LayerMethod, State, Turn, among, count_of


def lisa(layers: int = 2, *, state: State = "drop") -> LayerMethod:
    """Train ``layers`` of the layers, drawn uniformly without replacement at each turn.

    Source: Pan et al. 2024, LISA (2403.17919). Where we differ: the optimizer state of a layer that stops
    is dropped, so that memory stays flat; the paper's code keeps it (``state="keep"``). The embeddings train, so
    there is no frozen prefix and no time to be won below the lowest layer.

    Args:
        layers: that train at once; at most all.
        state: "drop" or "keep".

    Raises:
        ConfigError: not a number of layers, or an unknown rule for the state; at `attach`, the model has fewer layers.

    >>> lisa(3).embeddings, lisa(3).state
    ('always', 'drop')
    """
    count_of("layers", layers)

    def choose(turn: Turn) -> Chosen:
        drawn = torch.randperm(turn.count, generator=turn.draw(turn.number))[: among("layers", layers, turn)]
        return tuple(sorted(drawn.tolist()))

    return LayerMethod("lisa", choose, reference="2403.17919", moves=True, embeddings="always", state=state, cache=None)
