"""A frozen linear layer with a sparse delta: ``y = x (W + S)' + b``, one autograd function.

W and S are summed anew in each pass (as many additions as the layer has weights, against a product for each row of the
input), so that there is one dense product forward, one backward, and the gradient of S is computed where S is held and
nowhere else. Where W or the input is narrower than S the two stay apart: a small delta would vanish in the rounding of
their sum. SpIEL: 2401.16405, section 3.3, whose kernels read a dense gradient; SHiRA: 2406.13175.
"""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor

from realloc.kernels import taps
from realloc.kernels.compute import Site, dense, gathered, rows_of, sampled_product
from realloc.kernels.dispatch import SCATTER, not_supported
from realloc.kernels.ops import once


def delta_linear(x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, site: Site, compute: Tensor) -> Tensor:
    """The layer with its delta.

    Args:
        x: ``[..., in]``, any strides; of the dtype of the weight.
        weight: ``[out, in]``; its gradient is made only where it is asked for.
        bias: ``[out]`` or None.
        values: the slots of the site, ``[m, 1]``; may be of a wider dtype, and may be empty.
        site: where the held weights of the delta lie.
        compute: int8 ``[S]``: whether the gradient of the slots comes from a kernel (0) or from a dense product (1).
    """
    return cast("Tensor", _Linear.apply(x, weight, bias, values, site, compute))  # type: ignore[no-untyped-call]


def _factors(weight: Tensor, values: Tensor, site: Site, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The matrices whose products with the input make up the layer: W + S, or W and S apart."""
    bounds = site.bounds()
    part = dense(site.slots(values, bounds), site, bounds)
    if weight.dtype == part.dtype == dtype:
        return (part.add_(weight),)
    return weight, part.to(dtype)


@final
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, site: Site, compute: Tensor
    ) -> Tensor:
        rows = rows_of(x, site.layout.in_features)
        first, *rest = _factors(weight, values, site, x.dtype)
        out = torch.nn.functional.linear(rows, first, bias)
        for more in rest:
            out.addmm_(rows, more.t())
        learns = ctx.needs_input_grad[3] or ctx.needs_input_grad[1]
        # the placement is saved too: a move between forward and backward is then an error, not a wrong gradient
        ctx.save_for_backward(rows if learns else None, weight, values, site.extents, site.rowptr, site.columns)
        ctx.site, ctx.compute, ctx.shape, ctx.dtype = site, compute, x.shape, x.dtype
        return out.view(*x.shape[:-1], site.layout.out_features)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        with torch.no_grad():
            gradients = _linear_backward(ctx, gy)
        return *once(gradients), None, None


def _linear_backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    rows, weight, values, *_ = ctx.saved_tensors
    site: Site = ctx.site
    needs = ctx.needs_input_grad
    gy = rows_of(gy, site.layout.out_features)
    gx, own = None, None
    if needs[0]:
        first, *rest = _factors(weight, values, site, ctx.dtype)
        gx = gy @ first
        for more in rest:
            gx.addmm_(gy, more)
        gx = gx.view(ctx.shape)
    if needs[3]:
        own = _slots_gradient(gy, rows, values, site, ctx.compute)
        taps.notify(site.tap, rows, gy)
    gw = gy.t() @ rows if needs[1] else None
    return gx, gw, gy.sum(0) if needs[2] else None, own


def _slots_gradient(gy: Tensor, rows: Tensor, values: Tensor, site: Site, compute: Tensor) -> Tensor:
    """The gradient of the slots, in their dtype: a sampled product, or a dense one where that is quicker."""
    bounds = site.bounds()
    if not_supported(values.device, values.dtype) or int(compute[site.site]) == SCATTER:
        found = gathered(gy.t() @ rows, site, bounds)
        return found.to(values.dtype).view_as(values)
    own = torch.zeros_like(values) if not len(gy) else torch.empty_like(values)
    if values.numel():
        sampled_product(gy.to(values.dtype), rows.to(values.dtype), site.rows(bounds), own)
    return own
