"""BAdam: one block after the other, each with fresh moments."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from realloc.errors import ConfigError
from realloc.methods.layers import Chosen, LayerMethod, Turn

Order = Literal["random", "ascending", "descending"]


def badam(order: Order = "random") -> LayerMethod:
    """Train one layer at a time; at each turn the next one, with its moments started anew.

    Source: Luo, Yu, Li 2024, BAdam (2404.02827). Where we differ: the head trains in every turn (the
    paper's code leaves it out), and a round's order is a function of the seed and the round, so that a resume goes on
    in it.

    Args:
        order: of the layers in a round: "random" (drawn for each round), "ascending" from the input, or "descending".

    Raises:
        ConfigError: an unknown order.

    >>> badam("descending").moves
    True
    """
    if order not in get_args(Order):
        raise ConfigError(f"order is {order!r}; use one of {', '.join(get_args(Order))}")

    def choose(turn: Turn) -> Chosen:
        place = turn.number % turn.count
        if order == "ascending":
            return (place,)
        if order == "descending":
            return (turn.count - 1 - place,)
        order_of_round = torch.randperm(turn.count, generator=turn.draw(turn.number // turn.count))
        return (int(order_of_round[place]),)

    return LayerMethod("badam", choose, reference="2404.02827", moves=True, cache=None)
