"""Soft selection: the better the score, the likelier."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Generator, Tensor

from realloc.errors import ConfigError, StateError
from realloc.select.selector import Selector, check_request
from realloc.select.top_k import top_k


def sampled(temperature: float = 1.0) -> Selector:
    """Build a selector that draws ``k`` units without replacement, with chances ``score ** (1 / temperature)``.

    The top-k of ``log(score) / temperature + Gumbel noise`` is such a draw, exactly ``k`` units, in one pass. Units of
    score zero are drawn only when the positive ones run out, and then evenly. Towards temperature 0 this is ``top_k``,
    for a great one it is uniform. Only ratios of scores matter.

    To release softly, sample the units that stay.

    Args:
        temperature: above 0. The exponent ``T`` of CHTs is ``1 / temperature``.

    Raises:
        ConfigError: a temperature that is not a finite number above 0.
        StateError: on the call, for a score that is NaN or negative.

    Reference: soft removal and regrowth of CHTs (2501.19107, section 3.1 and eq. 2). Where we differ: Gumbel top-k in
    float64 in place of ``torch.multinomial``, which ends at 2^24 categories.

    >>> half = sampled(0.5)
    >>> half(torch.tensor([0.0, 1.0, 0.0, 1.0]), 2, torch.Generator().manual_seed(0)).tolist()
    [1, 3]
    """
    good = isinstance(temperature, Real) and not isinstance(temperature, bool)
    if not (good and math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"sampled(temperature={temperature!r}): pass a finite number above 0, or use top_k")

    def select(scores: Tensor, k: int, generator: Generator) -> Tensor:
        check_request(scores, k)
        if bool((scores < 0).any()):
            raise StateError(
                f"the lowest of {len(scores)} scores is {float(scores.min())}; sample scores from 0 upwards"
            )
        drawn = torch.rand(len(scores), generator=generator, dtype=torch.float64)
        noise = -(-drawn.clamp_min_(2.0**-54).log_()).log_().to(scores.device)
        positive = torch.nonzero(scores > 0).flatten()
        if len(positive) >= k:
            keys = scores[positive].double().log_() / temperature + noise[positive]
            return positive[top_k(keys, k)]
        zero = torch.nonzero(scores == 0).flatten()
        extra = zero[top_k(noise[zero], k - len(positive))]
        return torch.cat((positive, extra)).sort().values

    return select
