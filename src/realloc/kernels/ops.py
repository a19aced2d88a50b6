"""Packed layers as differentiable operations: an autograd function in eager mode, custom operators in a graph.

Both call the same arithmetic (kernels/compute.py). A custom operator costs more at each call; an autograd function
would break a graph. Everything that a move changes is read from tensors when the operation runs, so that nothing
recompiles.
"""

from __future__ import annotations

from typing import Any, Final, cast, final

import torch
from torch import Tensor

from realloc.errors import StateError
from realloc.kernels import graph, taps
from realloc.kernels.compute import Site, dense, linear, linear_backward, rows_of, uses_kernel, weight_backward
from realloc.kernels.walks import Layout

TWICE: Final = graph.TWICE


def packed_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, whole: bool, extents: Tensor, site: int, rowptr: Tensor,
    columns: Tensor, compute: Tensor, out_features: int, in_features: int, r: int, c: int, tap: int,
) -> Tensor:  # fmt: skip
    """``x @ weight.T + bias`` for x ``[..., in]``, where only the held blocks of the weight exist.

    Args:
        x: ``[..., in]``, any strides.
        values: ``[m]`` or ``[m, 1]``: the slots of the whole pool if ``whole``, else of this site only.
        bias: ``[out]`` or None.
        whole: how ``values`` is meant. The gradient has the shape of ``values``, zero at other sites' slots.
        extents: int64 ``[S + 1]``, first unit of each site.
        site: index of this site.
        rowptr: int32 ``[out / r + 1]``, from the site's first unit.
        columns: int32, column of each unit, for the whole pool.
        compute: int8 ``[S]``: 0 kernel, 1 scatter; read when the operation runs.
        out_features: rows of the dense weight.
        in_features: columns of the dense weight.
        r: rows of a block.
        c: columns of a block.
        tap: number of the tap to notify in the backward pass; 0 for none.

    Raises:
        StateError: the placement does not fit the layer; or the result is differentiated twice.
    """
    if torch.compiler.is_compiling():
        return cast(
            "Tensor",
            graph.packed_linear(
                x, values, bias, whole, extents, site, rowptr, columns, compute, out_features, in_features, r, c, tap
            ),
        )
    where = Site(whole, extents, site, rowptr, columns, Layout(out_features, in_features, r, c), tap)
    return cast("Tensor", _Linear.apply(x, values, bias, where, compute))  # type: ignore[no-untyped-call]


def packed_weight(
    values: Tensor, whole: bool, extents: Tensor, site: int, rowptr: Tensor, columns: Tensor, out_features: int,
    in_features: int, r: int, c: int, tap: int,
) -> Tensor:  # fmt: skip
    """The dense weight ``[out, in]``, differentiable, for code that reads a weight without calling the layer.

    Arguments as in `packed_linear`. Its backward pass notifies the tap with the dense gradient.
    """
    if torch.compiler.is_compiling():
        return cast(
            "Tensor",
            graph.packed_weight(values, whole, extents, site, rowptr, columns, out_features, in_features, r, c, tap),
        )
    where = Site(whole, extents, site, rowptr, columns, Layout(out_features, in_features, r, c), tap)
    return cast("Tensor", _Weight.apply(values, where))  # type: ignore[no-untyped-call]


@final
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, site: Site, compute: Tensor) -> Tensor:
        kernel = uses_kernel(x, values, compute, site.site)
        ctx.site, ctx.kernel = site, kernel
        # the placement is saved too: a move between forward and backward is then an error, not a wrong gradient
        ctx.save_for_backward(x, values, site.extents, site.rowptr, site.columns)
        return linear(x, values, bias, site, kernel)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        x, values, *_ = ctx.saved_tensors
        site: Site = ctx.site
        with torch.no_grad():
            gradients = linear_backward(gy, x, values, site, ctx.kernel, ctx.needs_input_grad[:3])
            layout = site.layout
            taps.notify(site.tap, rows_of(x, layout.in_features), rows_of(gy, layout.out_features))
        return *once(gradients), None, None


@final
class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, site: Site) -> Tensor:
        ctx.site = site
        ctx.save_for_backward(values, site.extents, site.rowptr, site.columns)
        bounds = site.bounds()
        return dense(site.slots(values, bounds), site, bounds)

    @staticmethod
    def backward(ctx: Any, gw: Tensor) -> Any:
        values, *_ = ctx.saved_tensors
        with torch.no_grad():
            gradient = weight_backward(gw, values, ctx.site)
            taps.notify_dense(ctx.site.tap, gw)
        return *once((gradient,)), None


@final
class _Once(torch.autograd.Function):
    """Passes gradients on and refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, why: str, *gradients: Tensor | None) -> Any:
        ctx.why = why
        return tuple(None if g is None else g.view_as(g) for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise StateError(ctx.why)


def once(gradients: tuple[Tensor | None, ...], why: str = TWICE) -> tuple[Tensor | None, ...]:
    """Pass gradients on; where a graph of them is made, differentiating it is refused: ``why``."""
    if not torch.is_grad_enabled():
        return gradients
    tied = [None if g is None else g.requires_grad_() for g in gradients]
    return cast("tuple[Tensor | None, ...]", _Once.apply(why, *tied))  # type: ignore[no-untyped-call]
