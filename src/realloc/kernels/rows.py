"""A placement as sorted places, and as a CSR index: one walk each way."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.kernels import reference
from realloc.kernels import task as w
from realloc.kernels.team import run


def places_of(pointer: Tensor, columns: Tensor, width: int) -> Tensor:
    """int64 ``[m]``: ``row * width + column`` of int32 ``pointer [rows + 1]``, ``columns [m]``.

    >>> places_of(torch.tensor([0, 1, 3], dtype=torch.int32), torch.tensor([4, 0, 2], dtype=torch.int32), 10)
    tensor([ 4, 10, 12])
    """
    if pointer.device.type != "cpu":
        return reference.places(pointer, columns, width)
    out = torch.empty(columns.numel(), dtype=torch.int64)
    words: w.Words = {
        w.POINTER: pointer, w.OTHER: columns, w.LINES: pointer.numel() - 1, w.SAMPLES: columns.numel(),
        w.FEATURES: width, w.OUT: out,
    }  # fmt: skip
    run("spread", torch.float64, words, 0)
    return out


def write_rows(places: Tensor, width: int, pointer: Tensor, columns: Tensor) -> None:
    """Write ascending int64 ``places [m]`` into int32 ``pointer [rows + 1]`` and ``columns [m]``, in place.

    >>> pointer, columns = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    >>> write_rows(torch.tensor([4, 10, 12]), 10, pointer, columns)
    >>> pointer.tolist(), columns.tolist()
    ([0, 1, 3], [4, 0, 2])
    """
    if pointer.device.type != "cpu":
        reference.rows(places, width, pointer, columns)
        return
    words: w.Words = {
        w.X: places.contiguous(), w.SAMPLES: places.numel(), w.FEATURES: width, w.LINES: pointer.numel() - 1,
        w.POINTER: pointer, w.OTHER: columns,
    }  # fmt: skip
    run("fold", torch.float64, words, 0)
    for written in (pointer, columns):
        torch.autograd.graph.increment_version(written)
