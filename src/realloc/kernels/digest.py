"""A digest that tells one placement from another. No seal: whoever changes a placement can make its digest too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from realloc.kernels import task as w
from realloc.kernels.team import run


def digest(tensors: Sequence[Tensor]) -> int:
    """63 bits of the bytes of some tensors, in their order: the sum of splitmix64 over words mixed with their position.

    Five times as quick as sha256, and made after each move. A changed bit changes it, but for a chance of 2^-63.

    >>> digest([torch.tensor([1, 2])]) == digest([torch.tensor([2, 1])])
    False
    """
    parts = [tensor.detach().cpu().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    size = sum(part.numel() for part in parts)
    whole = torch.cat([*parts, torch.zeros(8 - size % 8, dtype=torch.uint8)]).view(torch.int64)
    sums = torch.zeros(max(1, torch.get_num_threads()), dtype=torch.int64)
    run("digest", torch.float64, {w.X: whole, w.LINES: whole.numel(), w.OUT: sums}, whole.numel())
    return (int(sums.sum()) + size) & (2**63 - 1)
