"""The gradient of units that are not held: a sampled product, or a block of rows. Never a dense gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.kernels import reference
from realloc.kernels.compute import rows_of, sampled_product
from realloc.kernels.dispatch import not_supported
from realloc.kernels.rows import write_rows
from realloc.kernels.walks import Index, Layout, elements

Pairs = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def candidate_gradient(pairs: Pairs, places: Tensor, r: int = 1, c: int = 1) -> Tensor:
    """``[u, r * c]``: sum over pairs ``(x [b, in], gy [b, out])`` of ``gy[:, o] . x[:, j]`` at the given units only.

    Args:
        pairs: at least one.
        places: int64 ``[u]``, ascending: ``row * (in / c) + column`` of each unit.
        r: rows of a block.
        c: columns of a block.
    """
    x, gy = pairs[0]
    width = x.shape[1] // c
    if not_supported(x.device, x.dtype) or gy.dtype != x.dtype or places.numel() == 0:
        return reference.candidate_gradient(pairs, places // width, places % width, r, c)
    pointer = torch.empty(gy.shape[1] // r + 1, dtype=torch.int32)
    columns = torch.empty(places.numel(), dtype=torch.int32)
    write_rows(places, width, pointer, columns)
    index = Index(pointer, columns, None)
    if r * c > 1:
        index = elements(index, Layout(gy.shape[1], x.shape[1], r, c))
    out = torch.zeros(places.numel(), r * c, dtype=x.dtype)
    for number, (x, gy) in enumerate(pairs):
        sampled_product(rows_of(gy, gy.shape[1]), rows_of(x, x.shape[1]), index, out, keep=number > 0)
    return out


@torch.no_grad()
def row_block_gradient(pairs: Pairs, first: int, last: int) -> Tensor:
    """``[last - first, in]``: rows ``first .. last`` of the dense gradient, by one matrix product for each pair."""
    total = pairs[0][1][:, first:last].t() @ pairs[0][0]
    for x, gy in pairs[1:]:
        total.addmm_(gy[:, first:last].t(), x)
    return total
