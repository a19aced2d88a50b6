"""Moving slots: one gather, in place."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from realloc.kernels import reference
from realloc.kernels import task as w
from realloc.kernels.team import run

# bits are moved, not numbers: any dtype of the same size goes through the same kernel
_BITS: Final = {4: torch.float32, 8: torch.float64}


@torch.no_grad()
def gather_slots(tensor: Tensor, source: Tensor, fresh: Tensor | None = None, fill: float = 0.0) -> None:
    """``new[i] = old[source[i]]``; where source is -1, the next entry of ``fresh``, or ``fill``. In place.

    Args:
        tensor: contiguous ``[n]`` or ``[n, 1]``, any dtype. Its storage stays; its version rises.
        source: int64 ``[n]``; entries below 0 are new slots.
        fresh: as many entries as there are new slots.
        fill: used where ``fresh`` is not given.

    Raises:
        StateError: a source lies beyond the tensor.

    >>> held = torch.tensor([1.0, 2.0, 3.0])
    >>> gather_slots(held, torch.tensor([1, -1, 2]), fill=9.0)
    >>> held
    tensor([2., 9., 3.])
    """
    if source.shape != (tensor.numel(),):
        raise ValueError(f"source has shape {tuple(source.shape)}, the tensor has {tensor.numel()} slots")
    bits = _BITS.get(tensor.element_size())
    if tensor.device.type != "cpu" or bits is None or tensor.is_complex() or tensor.numel() == 0:
        reference.gather_slots(tensor, source, fresh, fill)
        return
    source = source.contiguous()
    new = torch.empty_like(tensor)
    words: w.Words = {
        w.POINTER: source, w.LINES: source.numel(), w.FEATURES: tensor.numel(), w.X: tensor, w.OUT: new,
        w.BIAS: torch.full((1,), fill, dtype=tensor.dtype),
    }  # fmt: skip
    run("gather", bits, words, tensor.numel())
    if fresh is not None:
        new.view(-1)[(source < 0).nonzero().squeeze(1)] = fresh.to(tensor.dtype).flatten()
    tensor.copy_(new)
