"""The control of learnt rates: the same shares, on the wrong layers."""

from __future__ import annotations

from dataclasses import replace

import torch

from realloc.errors import ConfigError
from realloc.methods.rate_method import RateMethod, RatePast


def permuted_rates(method: RateMethod) -> RateMethod:
    """Share as a method does, then exchange the shares between layers by one random permutation of the whole run.

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

    def share(past: RatePast) -> list[float]:
        weights = list(method.share(past))
        order = torch.randperm(len(past), generator=past.draw("permuted")).tolist()
        return [weights[place] for place in order]

    return replace(method, name="permuted_rates", share=share, reference="")
