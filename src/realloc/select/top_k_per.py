"""The best of every group: rows of constant fan-in, N:M, heads."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from realloc.errors import ConfigError
from realloc.select.selector import Selector, check_request
from realloc.select.top_k import top_k


def top_k_per(groups: Tensor) -> Selector:
    """Build a selector that takes equally many units of every group, the best of each.

    A group smaller than its share gives all it has, and the others share what is missing. When ``k`` does not divide
    evenly, the units left over go to the groups whose next unit scores highest. The count is always exactly ``k``.

    Args:
        groups: int64[u], the group of each unit, from 0.

    Raises:
        ConfigError: groups that are not ``[u]`` integers from 0, or do not fit the scores.

    Reference: constant fan-in is SRigL's constraint (2305.02299) with the row as group.

    >>> rows = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> top_k_per(rows)(torch.tensor([9.0, 8.0, 7.0, 1.0, 2.0, 3.0]), 4, torch.Generator()).tolist()
    [0, 1, 4, 5]
    """
    if groups.ndim != 1 or groups.is_floating_point() or (len(groups) and int(groups.min()) < 0):
        raise ConfigError(f"groups are {groups.dtype} of shape {tuple(groups.shape)}; pass one integer from 0 per unit")

    def select(scores: Tensor, k: int, generator: Generator) -> Tensor:
        check_request(scores, k)
        if len(groups) != len(scores):
            raise ConfigError(f"{len(groups)} groups for {len(scores)} scores; pass one group per unit")
        if not len(scores):
            return torch.zeros(0, dtype=torch.long, device=scores.device)
        sizes = torch.bincount(groups)
        level = _level(sizes, k)
        rank = _rank_within(scores, groups, sizes)
        sure = rank < level
        next_best = torch.nonzero(rank == level).flatten()
        sure[next_best[top_k(scores[next_best], k - int(sure.sum()))]] = True
        return torch.nonzero(sure).flatten()

    return select


def _level(sizes: Tensor, k: int) -> int:
    """Greatest level with ``sum(min(size, level)) <= k``."""
    low, high = 0, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if int(sizes.clamp_max(middle).sum()) <= k:
            low = middle
        else:
            high = middle - 1
    return low


def _rank_within(scores: Tensor, groups: Tensor, sizes: Tensor) -> Tensor:
    """Rank of each unit in its group, 0 for the best, ties to the lower index."""
    by_score = torch.sort(scores, descending=True, stable=True).indices
    order = by_score[torch.sort(groups[by_score], stable=True).indices]
    start = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - start[groups[order]]
    return rank
