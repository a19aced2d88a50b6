"""What a compiled graph holds of a layer with ranks: the custom operator ``realloc::rank_part``.

It takes the whole pool and its extents as tensors, so that a move does not recompile. The frozen layer itself stays in
the graph.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from realloc.errors import StateError
from realloc.kernels import taps
from realloc.kernels.compute import rows_of

TWICE: Final = "a layer with ranks has no second derivative; a loss must not differentiate a gradient through it"


@torch.library.custom_op("realloc::rank_part", mutates_args=())
def rank_part(x: Tensor, pool: Tensor, extents: Tensor, site: int, fan_out: int, scale: float, tap: int) -> Tensor:
    a, b = (part.to(x.dtype) for part in _factors(pool, extents, site, x.shape[-1], fan_out))
    return (rows_of(x, x.shape[-1]) @ a.t()).mul_(scale).mm(b).view(*x.shape[:-1], fan_out)


@torch.library.custom_op("realloc::rank_part_backward", mutates_args=())
def rank_part_backward(
    gy: Tensor, x: Tensor, pool: Tensor, extents: Tensor, site: int, scale: float, tap: int, need_x: bool
) -> tuple[Tensor, Tensor]:
    fan_in, fan_out = x.shape[-1], gy.shape[-1]
    rows, up = rows_of(x, fan_in), rows_of(gy, fan_out)
    a, b = (part.to(x.dtype) for part in _factors(pool, extents, site, fan_in, fan_out))
    gradient = torch.zeros_like(pool)
    ga, gb = _factors(gradient, extents, site, fan_in, fan_out)
    back = (up @ b.t()).mul_(scale)
    ga.copy_(back.t() @ rows)
    gb.copy_((rows @ a.t()).mul_(scale).t() @ up)
    taps.notify(tap, rows, up, copy=True)  # a compiled graph reuses memory without asking who holds it
    return (back @ a).view(x.shape) if need_x else gy.new_empty(0), gradient


def _factors(pool: Tensor, extents: Tensor, site: int, fan_in: int, fan_out: int) -> tuple[Tensor, Tensor]:
    first, last = extents[site : site + 2].tolist()
    middle = first + (last - first) // (fan_in + fan_out) * fan_in
    return pool[first:middle].view(-1, fan_in), pool[middle:last].view(-1, fan_out)


@rank_part.register_fake
def _(x: Tensor, pool: Tensor, extents: Tensor, site: int, fan_out: int, scale: float, tap: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], fan_out)


@rank_part_backward.register_fake
def _(gy: Tensor, x: Tensor, pool: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape) if rest[-1] else gy.new_empty(0), pool.new_empty(pool.shape)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    x, pool, extents, site, _, scale, tap = inputs
    ctx.save_for_backward(x, pool, extents)
    ctx.rest = site, scale, tap


def _backward(ctx: Any, gy: Tensor) -> Any:
    x, pool, extents = ctx.saved_tensors
    gx, gpool = rank_part_backward(gy, x, pool, extents, *ctx.rest, ctx.needs_input_grad[0])
    return (gx if ctx.needs_input_grad[0] else None), gpool, *[None] * 5


def _refuse(ctx: Any, *_: Any) -> Any:
    raise StateError(TWICE)


rank_part.register_autograd(_backward, setup_context=_save)
rank_part_backward.register_autograd(_refuse)
