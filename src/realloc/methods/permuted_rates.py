"""The control of learnt rates: the same shares, on the wrong layers."""

from __future__ import annotations

from dataclasses import replace

import torch

from realloc.errors import ConfigError
from realloc.methods.rate_method import RateMethod, RatePast


def permuted_rates(method: RateMethod) -> RateMethod:
    """Share as a method does, with the weights exchanged between layers by one random cycle, the same in the whole run.

    Under ``hold="mean"`` and ``"geometric"`` the shares are those of the method, each on another layer; under
    ``"movement"`` they are scaled anew, since layers move differently.

    Layers without a gradient keep a share of one here too, and the others exchange theirs.

    Where it does as well as the method, it was the spread of the rates that helped, not where they went.

    Args:
        method: such as `methods.tempbalance()`.

    Raises:
        ConfigError: no method over learning rates.

    >>> from realloc import methods
    >>> permuted_rates(methods.llrd()).name
    'permuted_rates'
    """
    if not isinstance(method, RateMethod):
        raise ConfigError(f"method is {method!r}; take one over learning rates, such as realloc.methods.llrd()")

    def weigh(past: RatePast) -> list[float]:
        weights = list(method.weigh(past))
        among = [place for place, trains in enumerate(past.trains) if trains]
        order = [among[place] for place in torch.randperm(len(among), generator=past.draw("permuted")).tolist()]
        taken = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle: no layer keeps its own
        return [weights[taken.get(place, place)] for place in range(len(past))]

    return replace(method, name="permuted_rates", weigh=weigh, reference="")
