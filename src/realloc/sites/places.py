"""Arithmetic of sorted places. Searches instead of sorts: a move of a large layer must not need the memory of one."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.kernels.search import locate


def among(queries: Tensor, held: Tensor) -> Tensor:
    """Bool: which of ``queries`` occur in ``held`` (int64, ascending, each place once).

    >>> among(torch.tensor([1, 4, 9]), torch.tensor([4, 5]))
    tensor([False,  True, False])
    """
    if not held.numel():
        return torch.zeros(queries.numel(), dtype=torch.bool, device=queries.device)
    spot = locate(held, queries).clamp(max=held.numel() - 1)
    return held[spot] == queries


def without(held: Tensor, gone: Tensor) -> Tensor:
    """``held`` less ``gone``; both ascending, ``gone`` a part of ``held``.

    >>> without(torch.tensor([1, 4, 9]), torch.tensor([4]))
    tensor([1, 9])
    """
    stays = torch.ones(held.numel(), dtype=torch.bool, device=held.device)
    stays[locate(held, gone)] = False
    return held[stays]


def merge(kept: Tensor, come: Tensor) -> Tensor:
    """Both together, ascending; they have no place in common.

    >>> merge(torch.tensor([1, 9]), torch.tensor([4, 11]))
    tensor([ 1,  4,  9, 11])
    """
    if not come.numel():
        return kept
    spot = locate(kept, come) + torch.arange(come.numel(), device=come.device)
    old = torch.ones(kept.numel() + come.numel(), dtype=torch.bool, device=kept.device)
    old[spot] = False
    both = torch.empty(old.numel(), dtype=kept.dtype, device=kept.device)
    both[old], both[spot] = kept, come
    return both
