"""The gradient of units that are not held: a sampled product, or a block of rows. Never a dense gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.kernels import reference
from realloc.kernels.compute import rows_of, sampled_product
from realloc.kernels.dispatch import not_supported
from realloc.kernels.walks import Index, Layout, elements

Pairs = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def candidate_gradient(pairs: Pairs, rows: Tensor, columns: Tensor, r: int, c: int) -> Tensor:
    """``[u, r * c]``: sum over pairs ``(x [b, in], gy [b, out])`` of ``gy[:, o] . x[:, j]`` at the given units only.

    Args:
        pairs: at least one.
        rows: row of each unit, counted in units.
        columns: column of each unit, counted in units.
        r: rows of a block.
        c: columns of a block.

    Raises:
        StateError: a unit lies outside the layer.
    """
    x, gy = pairs[0]
    if not_supported(x.device, x.dtype) or gy.dtype != x.dtype or rows.numel() == 0:
        return reference.candidate_gradient(pairs, rows, columns, r, c)
    sort = None if bool((rows.diff() >= 0).all()) else rows.argsort(stable=True)
    if sort is not None:
        rows, columns = rows[sort], columns[sort]
    pointer = torch.zeros(gy.shape[1] // r + 1, dtype=torch.int32)
    pointer[1:] = torch.bincount(rows, minlength=pointer.numel() - 1).cumsum(0)
    index = Index(pointer, columns.int().contiguous(), None)
    if r * c > 1:
        index = elements(index, Layout(gy.shape[1], x.shape[1], r, c))
    out = torch.zeros(rows.numel(), r * c, dtype=x.dtype)
    for number, (x, gy) in enumerate(pairs):
        sampled_product(rows_of(gy, gy.shape[1]), rows_of(x, x.shape[1]), index, out, keep=number > 0)
    if sort is None:
        return out
    back = torch.empty_like(out)
    back[sort] = out
    return back


@torch.no_grad()
def row_block_gradient(pairs: Pairs, first: int, last: int) -> Tensor:
    """``[last - first, in]``: rows ``first .. last`` of the dense gradient, by one matrix product for each pair."""
    total = pairs[0][1][:, first:last].t() @ pairs[0][0]
    for x, gy in pairs[1:]:
        total.addmm_(gy[:, first:last].t(), x)
    return total
