"""One split of a flat pool into dense parameters, whose backward tells each one's tap that it took part."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, final

import torch
from torch import Tensor

from realloc.kernels.taps import Tap, current_task

Shape = tuple[int, ...]


def cut(pool: Tensor, shapes: Sequence[Shape], taps: Sequence[Tap]) -> tuple[Tensor, ...]:
    """Views of ``pool`` ``[n, 1]``, one after another in these shapes; the rest of the pool is in none.

    With gradients on, each tap hears of the backwards that reach its view: one call of Python for a pool and backward,
    where a hook on every layer would be one for each layer.
    """
    if pool.requires_grad and torch.is_grad_enabled():
        found: tuple[Tensor, ...] = _Cut.apply(pool, shapes, taps)  # type: ignore[no-untyped-call]
        return found
    return tuple(_views(pool, shapes))


def _views(pool: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    sizes = [prod(shape) for shape in shapes]
    parts = torch.split(pool, [*sizes, len(pool) - sum(sizes)])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=False)]


@final
class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pool: Tensor, shapes: Sequence[Shape], taps: Sequence[Tap]) -> tuple[Tensor, ...]:
        ctx.taps, ctx.shapes, ctx.length = taps, shapes, len(pool)
        ctx.set_materialize_grads(False)
        return tuple(_views(pool, shapes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        some = next((one for one in gradients if one is not None), None)
        if some is None:
            return None, None, None
        task, pieces, left = current_task(), list[Tensor](), ctx.length
        for gradient, tap, shape in zip(gradients, ctx.taps, ctx.shapes, strict=True):
            size = prod(shape)
            left -= size
            if gradient is None:
                pieces.append(some.new_zeros(size))
            else:
                tap.saw(task)
                pieces.append(gradient.reshape(-1))
        pieces.append(some.new_zeros(left))
        return torch.cat(pieces).unsqueeze(1), None, None
