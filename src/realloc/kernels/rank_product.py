"""A frozen linear layer with ranks beside it: ``y = x W' + b + scale * (x A') B``, one autograd function.

A segment of the pool holds A ``[r, in]`` and then B ``[r, out]``, each in one piece: with the rows of one rank side
by side, the products take half as long again. Of many rows, ``W + scale * B'A`` is made first, which costs less than a
second pass over inputs and outputs; not in half precision, where the sum would round the ranks away. The gradients of
A and B land in the segment's gradient without a copy. LoRA: 2106.09685, equation 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast, final

import torch
from torch import Tensor

from realloc.kernels import taps
from realloc.kernels.compute import rows_of
from realloc.kernels.ops import once
from realloc.kernels.rank_graph import TWICE

MANY: Final = 4  # times a weight's size that rows must read and write before it pays to make another weight


def rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, slots: Tensor, scale: float, tap: int) -> Tensor:
    """The layer with its ranks.

    Args:
        x: ``[..., in]``, any strides; of the dtype of the weight.
        weight: ``[out, in]``; its gradient is made only where it is asked for.
        bias: ``[out]`` or None.
        slots: ``[r * (in + out), 1]``: A, then B; may be of another dtype, and may be empty.
        scale: factor of the ranks' part.
        tap: number of the tap to notify in the backward pass; 0 for none.

    >>> x, weight = torch.ones(1, 2), torch.zeros(3, 2)
    >>> rank_linear(x, weight, None, torch.tensor([[1.0], [2.0], [1.0], [0.0], [5.0]]), 2.0, 0)
    tensor([[ 6.,  0., 30.]])
    """
    return cast("Tensor", _Linear.apply(x, weight, bias, slots, scale, tap))  # type: ignore[no-untyped-call]


def rank_weight(weight: Tensor, slots: Tensor, scale: float, tap: int) -> Tensor:
    """``W + scale * B'A``, differentiable, for code that reads a weight without calling the layer."""
    return cast("Tensor", _Weight.apply(weight, slots, scale, tap))  # type: ignore[no-untyped-call]


def factors(slots: Tensor, fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[r, out]``, views of ``[r * (in + out), 1]``."""
    flat = slots.view(-1)
    split = flat.numel() // (fan_in + fan_out) * fan_in
    return flat[:split].view(-1, fan_in), flat[split:].view(-1, fan_out)


def gradient_of(pairs: Iterable[tuple[Tensor, Tensor]], dense: Iterable[Tensor], like: Tensor) -> Tensor:
    """The gradient ``[out, in]`` of the weight, from what taps captured."""
    total = torch.zeros(like.shape, dtype=torch.float32 if like.element_size() < 4 else like.dtype, device=like.device)
    for x, gy in pairs:
        total += gy.to(total.dtype).t() @ x.to(total.dtype)
    for part in dense:
        total += part
    return total


@final
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slots: Tensor, scale: float, tap: int
    ) -> Tensor:
        fan_out, fan_in = weight.shape
        rows = rows_of(x, fan_in)
        used, passes = _used(rows, weight, slots, scale)
        out, hidden = torch.nn.functional.linear(rows, used, bias), None
        if passes:
            a, b = factors(slots.to(x.dtype), fan_in, fan_out)
            hidden = rows @ a.t()
            out.addmm_(hidden, b, alpha=scale)
        learns = ctx.needs_input_grad[3] or ctx.needs_input_grad[1]
        ctx.save_for_backward(rows if learns else None, weight, slots, hidden if learns else None)
        ctx.scale, ctx.tap, ctx.shape = scale, tap, x.shape
        return out.view(*x.shape[:-1], fan_out)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        with torch.no_grad():
            gradients = _linear_backward(ctx, gy)
        return *once(gradients, TWICE), None, None


def _linear_backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight, slots, hidden = ctx.saved_tensors
    fan_out, fan_in = weight.shape
    gy = rows_of(gy, fan_out)
    needs = ctx.needs_input_grad
    gx, passes = None, False
    if needs[0]:
        used, passes = _used(gy, weight, slots, ctx.scale)
        gx = gy @ used
    own = torch.zeros_like(slots) if needs[3] else None
    if slots.numel() and (passes or own is not None):
        a, b = factors(slots.to(gy.dtype), fan_in, fan_out)
        back = (gy @ b.t()).mul_(ctx.scale)
        if passes and gx is not None:
            gx.addmm_(back, a)
        if own is not None:
            ga, gb = factors(own, fan_in, fan_out)
            hidden = rows @ a.t() if hidden is None else hidden
            _product(back.t(), rows, 1.0, ga)
            _product(hidden.t(), gy, ctx.scale, gb)
    gw = gy.t() @ rows if needs[1] else None
    gbias = gy.sum(0) if needs[2] else None
    if own is not None:
        taps.notify(ctx.tap, rows, gy)
    return None if gx is None else gx.view(ctx.shape), gw, gbias, own


def _folds(rows: Tensor, weight: Tensor) -> bool:
    """Whether adding the ranks to the weight costs less than passing so many rows through them."""
    return rows.element_size() >= 4 and rows.shape[0] * sum(weight.shape) > MANY * weight.numel()


def _used(rows: Tensor, weight: Tensor, slots: Tensor, scale: float) -> tuple[Tensor, bool]:
    """The weight that rows are multiplied with, and whether they must pass the ranks beside it."""
    if not slots.numel():
        return weight, False
    return (_folded(weight, slots, scale), False) if _folds(rows, weight) else (weight, True)


def _folded(weight: Tensor, slots: Tensor, scale: float) -> Tensor:
    a, b = factors(slots.to(weight.dtype), weight.shape[1], weight.shape[0])
    return torch.addmm(weight, b.t(), a, alpha=scale)


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
    """``scale * left @ right`` into ``out``, which may be of another dtype."""
    if out.dtype == left.dtype:
        torch.addmm(out, left, right, beta=0, alpha=scale, out=out)
    else:
        out.copy_((left @ right).mul_(scale))


@final
class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, slots: Tensor, scale: float, tap: int) -> Tensor:
        ctx.scale, ctx.tap = scale, tap
        ctx.save_for_backward(weight, slots)
        return _folded(weight, slots, scale)

    @staticmethod
    def backward(ctx: Any, gw: Tensor) -> Any:
        weight, slots = ctx.saved_tensors
        own = None
        with torch.no_grad():
            if ctx.needs_input_grad[1]:
                own = torch.zeros_like(slots)
                a, b = factors(slots.to(gw.dtype), weight.shape[1], weight.shape[0])
                ga, gb = factors(own, weight.shape[1], weight.shape[0])
                _product(b, gw, ctx.scale, ga)
                _product(a, gw.t(), ctx.scale, gb)
                taps.notify_dense(ctx.tap, gw)
        return *once((gw.clone() if ctx.needs_input_grad[0] else None, own), TWICE), None, None
