"""Random layers within the budget: the control of the methods that choose layers by what they measure."""

from __future__ import annotations

import torch

from realloc.methods.layers import Chosen, LayerMethod, Turn


def random_layers(budget: float = 0.5) -> LayerMethod:
    """At each turn, layers in random order as long as they fit the budget.

    Args:
        budget: share of the cost of a step in which every layer trains: FLOPs, or microseconds by ``costing(table)``.

    Raises:
        ConfigError: not a share.

    >>> random_layers(0.5).budget
    0.5
    """

    def choose(turn: Turn) -> Chosen:
        taken: Chosen = ()
        for layer in torch.randperm(turn.count, generator=turn.draw(turn.number)).tolist():
            wider = tuple(sorted((*taken, layer)))
            if turn.cost(wider) <= turn.budget:
                taken = wider
        return taken

    return LayerMethod("random_layers", choose, moves=True, budget=budget, cache=None)
