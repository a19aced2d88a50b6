"""Where sorted places lie among other sorted places: one walk over both instead of a search for each."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from realloc.kernels import task as w
from realloc.kernels.team import run

FEW: Final = 16  # held places for each query above which a binary search is quicker


@torch.no_grad()
def locate(held: Tensor, queries: Tensor) -> Tensor:
    """int64 ``[q]``: how many of ``held`` int64 ``[h]`` lie below each of ``queries`` int64 ``[q]``; both ascending.

    The same as ``torch.searchsorted(held, queries)``.

    >>> locate(torch.tensor([2, 5, 9]), torch.tensor([1, 5, 10]))
    tensor([0, 1, 3])
    """
    held, queries = held.contiguous(), queries.contiguous()
    if held.device.type != "cpu" or queries.numel() * FEW < held.numel() or not queries.numel():
        return torch.searchsorted(held, queries)
    found = torch.empty_like(queries)
    words: w.Words = {
        w.POINTER: held, w.LINES: held.numel(), w.OTHER: queries, w.SAMPLES: queries.numel(), w.OUT: found,
    }  # fmt: skip
    run("locate", torch.float64, words, 0)  # on this thread: what a walk costs is memory
    return found
