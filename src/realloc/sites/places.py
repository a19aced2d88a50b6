"""Which places occur among others, and which do not."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.kernels.search import locate


def others(mine: Tensor, count: int) -> Tensor:
    """Which of 0 to ``count - 1`` are not among ``mine``, ascending.

    >>> others(torch.tensor([2, 0]), 4)
    tensor([1, 3])
    """
    rest = torch.ones(count, dtype=torch.bool)
    rest[mine] = False
    return rest.nonzero().flatten()


def among(queries: Tensor, held: Tensor) -> Tensor:
    """Bool: which of ``queries`` occur in ``held`` (int64, ascending, each place once).

    A search instead of a sort: a move of a large layer must not need its memory.

    >>> among(torch.tensor([1, 4, 9]), torch.tensor([4, 5]))
    tensor([False,  True, False])
    """
    if not held.numel():
        return torch.zeros(queries.numel(), dtype=torch.bool, device=queries.device)
    spot = locate(held, queries).clamp(max=held.numel() - 1)
    return held[spot] == queries
