"""Moving slots: one gather over everything that a slot has, in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from realloc.kernels import reference
from realloc.kernels import task as w
from realloc.kernels.team import run

# bits are moved, not numbers: any dtype of the same size goes through the same kernel
_BITS: Final = {4: torch.float32, 8: torch.float64}
SCRATCH: Final = 1 << 21  # bytes of new tensors at a time, or one tensor
Slots = tuple[Tensor, Tensor | float]


@torch.no_grad()
def gather_slots(moving: Sequence[Slots], source: Tensor) -> None:
    """``new[i] = old[source[i]]`` for each tensor; where source is -1 its start value. In place.

    Args:
        moving: tensors, contiguous ``[n]`` or ``[n, 1]``, any dtype, each with what its new slots start with: a number,
            or a number for each slot, ``[n]``, of which those of new slots count. Storage stays; versions rise.
        source: int64 ``[n]``; entries below 0 are new slots.

    Raises:
        StateError: a source lies beyond the tensors.

    >>> held = torch.tensor([1.0, 2.0, 3.0])
    >>> gather_slots([(held, 9.0)], torch.tensor([1, -1, 2]))
    >>> held
    tensor([2., 9., 3.])
    """
    source = source.contiguous()
    for tensor, _ in moving:
        if source.shape != (tensor.numel(),):
            raise ValueError(f"source has shape {tuple(source.shape)}, the tensor has {tensor.numel()} slots")
    left = list(moving)
    for size, bits in _BITS.items():
        together = [(t, start) for t, start in left if t.device.type == "cpu" and t.element_size() == size]
        together = [(t, start) for t, start in together if not t.is_complex() and t.numel() and t.is_contiguous()]
        left = [pair for pair in left if not any(pair[0] is t for t, _ in together)]
        few = max(1, SCRATCH // (size * max(1, source.numel())))
        for first in range(0, len(together), few):
            _gather(together[first : first + few], source, bits)
    for tensor, start in left:
        reference.gather_slots(tensor, source, start)


def to_slots(source: Tensor, size: int) -> Tensor:
    """Expand a source over units of ``size`` slots each; -1 stays -1.

    >>> to_slots(torch.tensor([1, -1]), 2).tolist()
    [2, 3, -1, -1]
    """
    if size == 1:
        return source
    inside = torch.arange(size, device=source.device)
    return torch.where(source[:, None] < 0, -1, source[:, None] * size + inside).flatten()


def _gather(moving: Sequence[Slots], source: Tensor, bits: torch.dtype) -> None:
    news = [torch.empty_like(tensor) for tensor, _ in moving]
    fills = [
        start.to(t.dtype).contiguous() if isinstance(start, Tensor) else torch.full((1,), start, dtype=t.dtype)
        for t, start in moving
    ]
    table = torch.tensor([
        [tensor.data_ptr() for tensor, _ in moving], [new.data_ptr() for new in news],
        [fill.data_ptr() for fill in fills], [int(isinstance(start, Tensor)) for _, start in moving],
    ])  # fmt: skip
    words: w.Words = {
        w.POINTER: source, w.LINES: source.numel(), w.FEATURES: source.numel(), w.SAMPLES: len(news),
        w.X: table[0], w.OUT: table[1], w.BIAS: table[2], w.ORDER: table[3],
    }  # fmt: skip
    run("gather", bits, words, source.numel() * len(news))
    for (tensor, _), new in zip(moving, news, strict=True):
        tensor.copy_(new)
