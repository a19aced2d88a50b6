"""What a compiled graph holds: the custom operators ``realloc::packed_linear`` and ``realloc::packed_weight``."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from realloc.errors import StateError
from realloc.kernels import taps
from realloc.kernels.compute import Site, dense, linear, linear_backward, rows_of, uses_kernel, weight_backward
from realloc.kernels.walks import Layout

TWICE: Final = "a packed layer has no second derivative; use storage='masked' where a loss differentiates a gradient"


@torch.library.custom_op("realloc::packed_linear", mutates_args=())
def packed_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, whole: bool, extents: Tensor, site: int, rowptr: Tensor,
    columns: Tensor, compute: Tensor, out_features: int, in_features: int, r: int, c: int, tap: int,
) -> Tensor:  # fmt: skip
    where = Site(whole, extents, site, rowptr, columns, Layout(out_features, in_features, r, c), tap)
    return linear(x, values, bias, where, uses_kernel(x, values, compute, site)).contiguous()


@torch.library.custom_op("realloc::packed_linear_backward", mutates_args=())
def packed_linear_backward(
    gy: Tensor, x: Tensor, values: Tensor, whole: bool, extents: Tensor, site: int, rowptr: Tensor, columns: Tensor,
    compute: Tensor, out_features: int, in_features: int, r: int, c: int, tap: int,
    need_x: bool, need_values: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    where = Site(whole, extents, site, rowptr, columns, Layout(out_features, in_features, r, c), tap)
    kernel = uses_kernel(x, values, compute, site)
    found = linear_backward(gy, x, values, where, kernel, (need_x, need_values, need_bias))
    # a compiled graph reuses memory without asking who holds it: the tap copies
    taps.notify(tap, rows_of(x, in_features), rows_of(gy, out_features), copy=True)
    gx, gvalues, gbias = (gy.new_empty(0) if g is None else g.contiguous() for g in found)
    return gx, gvalues, gbias


@torch.library.custom_op("realloc::packed_weight", mutates_args=())
def packed_weight(
    values: Tensor, whole: bool, extents: Tensor, site: int, rowptr: Tensor, columns: Tensor, out_features: int,
    in_features: int, r: int, c: int, tap: int,
) -> Tensor:  # fmt: skip
    where = Site(whole, extents, site, rowptr, columns, Layout(out_features, in_features, r, c), tap)
    bounds = where.bounds()
    return dense(where.slots(values, bounds), where, bounds)


@torch.library.custom_op("realloc::packed_weight_backward", mutates_args=())
def packed_weight_backward(
    gw: Tensor, values: Tensor, whole: bool, extents: Tensor, site: int, rowptr: Tensor, columns: Tensor,
    out_features: int, in_features: int, r: int, c: int, tap: int,
) -> Tensor:  # fmt: skip
    where = Site(whole, extents, site, rowptr, columns, Layout(out_features, in_features, r, c), tap)
    taps.notify_dense(tap, gw, copy=True)
    return weight_backward(gw, values, where)


@packed_linear.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    out_features: int = rest[8]
    return x.new_empty(*x.shape[:-1], out_features)


@packed_linear_backward.register_fake
def _(gy: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_values, need_bias = rest[-3:]
    gx = x.new_empty(x.shape) if need_x else gy.new_empty(0)
    gvalues = values.new_empty(values.shape) if need_values else gy.new_empty(0)
    return gx, gvalues, gy.new_empty(rest[6] if need_bias else 0)


@packed_weight.register_fake
def _(values: Tensor, *rest: Any) -> Tensor:
    out_features, in_features = rest[5:7]
    return values.new_empty(out_features, in_features)


@packed_weight_backward.register_fake
def _(gw: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return values.new_empty(values.shape)


def _save_linear(ctx: Any, inputs: Any, output: Any) -> None:
    x, values, _, whole, extents, site, rowptr, columns, compute, *sizes = inputs
    ctx.save_for_backward(x, values, extents, rowptr, columns, compute)
    ctx.rest = whole, site, sizes


def _linear_backward(ctx: Any, gy: Tensor) -> Any:
    x, values, extents, rowptr, columns, compute = ctx.saved_tensors
    whole, site, sizes = ctx.rest
    needs = ctx.needs_input_grad[:3]
    gradients = packed_linear_backward(
        gy, x, values, whole, extents, site, rowptr, columns, compute, *sizes, *needs
    )  # fmt: skip
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *[None] * 11


def _save_weight(ctx: Any, inputs: Any, output: Any) -> None:
    values, whole, extents, site, rowptr, columns, *sizes = inputs
    ctx.save_for_backward(values, extents, rowptr, columns)
    ctx.rest = whole, site, sizes


def _weight_backward(ctx: Any, gw: Tensor) -> Any:
    values, extents, rowptr, columns = ctx.saved_tensors
    whole, site, sizes = ctx.rest
    return packed_weight_backward(gw, values, whole, extents, site, rowptr, columns, *sizes), *[None] * 10


def _refuse(ctx: Any, *_: Any) -> Any:
    raise StateError(TWICE)


packed_linear.register_autograd(_linear_backward, setup_context=_save_linear)
packed_weight.register_autograd(_weight_backward, setup_context=_save_weight)
packed_linear_backward.register_autograd(_refuse)
packed_weight_backward.register_autograd(_refuse)
