"""Layers that hold whole input columns: gather the inputs that are held, and multiply densely. Nothing else is read.

The slots of such a layer lie column after column, so the values of k columns are a dense ``[k, out]`` as they are, and
no index of single weights is needed. It is plain torch: it computes on any device and in any dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def picked(x: Tensor, held: Tensor) -> Tensor:
    """``[b, k]``: the inputs that are held, of x ``[b, in]``; x itself where that is all of them.

    >>> picked(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0, 2]))
    tensor([[1., 3.]])
    """
    return x if held.numel() == x.shape[1] else x.index_select(1, held)


def product(x: Tensor, values: Tensor, bias: Tensor | None, held: Tensor, out: Tensor) -> None:
    """``out = x[:, held] @ values + bias`` for x ``[b, in]``, values of ``[k, out]``, out ``[b, out]``."""
    matrix = values.view(held.numel(), -1) if held.numel() else values.new_zeros(0, out.shape[1])
    if bias is None:
        torch.mm(picked(x, held), matrix, out=out)
    else:
        torch.addmm(bias, picked(x, held), matrix, out=out)


def gradient(gy: Tensor, x: Tensor, held: Tensor, out: Tensor) -> None:
    """Gradient of the values, into a fresh ``out`` of ``[k * out]``, from gy ``[b, out]`` and x ``[b, in]``."""
    if held.numel():
        torch.mm(picked(x, held).t(), gy, out=out.view(held.numel(), gy.shape[1]))


def spread(gy: Tensor, values: Tensor, held: Tensor, width: int) -> Tensor:
    """Gradient of the input, ``[b, width]``: zero at inputs that are not held."""
    if not held.numel():
        return gy.new_zeros(gy.shape[0], width)
    found = gy @ values.view(held.numel(), -1).t()
    return found if held.numel() == width else gy.new_zeros(gy.shape[0], width).index_copy(1, held.long(), found)


def dense(values: Tensor, held: Tensor, height: int, width: int) -> Tensor:
    """The dense weight ``[height, width]``."""
    matrix = values.reshape(held.numel(), height).t()
    return values.new_zeros(height, width).index_copy(1, held.long(), matrix)


def cut(matrix: Tensor, held: Tensor) -> Tensor:
    """A dense ``[out, in]`` at the slots of the columns that are held: ``[k * out]``."""
    return picked(matrix, held).t().flatten()
