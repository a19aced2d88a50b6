"""What a selector is, and the checks that all share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from realloc.errors import ConfigError, StateError
from realloc.kernels.finite import any_nan

Selector = Callable[[Tensor, int, Generator], Tensor]
"""``(scores [u], k, generator) -> int64[k]``: indices of the selected units, ascending, exactly ``k`` of them."""


def check_request(scores: Tensor, k: int) -> None:
    """Refuse scores that cannot be ordered and counts that cannot be met.

    Raises:
        ConfigError: scores that are not ``[u]``, or ``k`` outside 0 to ``u``.
        StateError: a score that is NaN.
    """
    if scores.ndim != 1:
        raise ConfigError(f"scores have shape {tuple(scores.shape)}; pass one score per unit, shape (u,)")
    if not 0 <= k <= len(scores):
        raise ConfigError(f"k={k} units asked of {len(scores)}; pass 0 to {len(scores)}")
    if scores.is_floating_point() and any_nan(scores):
        raise StateError(f"{int(torch.isnan(scores).sum())} of {len(scores)} scores are NaN; skip this move")
