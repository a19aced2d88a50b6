"""Which places occur among others. A search instead of a sort: a move of a large layer must not need its memory."""

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
