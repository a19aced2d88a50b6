"""A sparse weight of `nn.Linear` whose values live in a pool: the whole weight, or a delta over a frozen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, final

import torch
from torch import Tensor, nn

from realloc.kernels.compute import Site
from realloc.kernels.delta import delta_linear
from realloc.kernels.ops import packed_linear, packed_weight
from realloc.kernels.taps import Tap
from realloc.kernels.walks import Layout
from realloc.sites.grid import Grid
from realloc.sites.seat import Slots

Stored = Literal["packed", "delta"]
LEAST: Final[Mapping[str, int]] = {
    "packed": 1,
    "delta": 0,
}  # units that a site must keep: without a delta its layer is what it was


@final
class PackedSite:
    """One weight matrix held as CSR over a pool.

    ``held`` and ``capacity`` count weights. All that changes at a move is read from the pool's buffers, so that
    a loaded, copied or moved model is right without a call. ``storage`` says whether it is the layer's whole weight
    ("packed") or is added to one that stays frozen ("delta").
    """

    def __init__(self, name: str, grid: Grid, pool: Slots, index: int, storage: Stored = "packed") -> None:
        self.name = name
        self.storage = storage
        self.grid = grid
        self.pool = pool
        self.index = index
        self.tap = Tap()
        self.frozen = False
        self.bias_trains = False  # whether a bias beside it was trainable when it was packed

    def __repr__(self) -> str:
        return f"PackedSite({self.name!r}, held={self.held:,} of {self.capacity:,})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        return (self.grid.height, self.grid.width)

    @property
    def capacity(self) -> int:
        """Weights the dense layer has."""
        return self.grid.height * self.grid.width

    @property
    def held(self) -> int:
        """Weights held now."""
        first, last = self.pool.bounds(self.index)
        return (last - first) * self.grid.size

    @property
    def compute(self) -> str:
        """How it computes now: kernel, scatter or gather."""
        if self.grid.whole_columns:
            return "gather"
        return ("kernel", "scatter")[int(self.pool.compute[self.index])]

    def places(self) -> Tensor:
        """Sorted int64 places of the held units."""
        return self.pool.places(self.index)

    def mask(self) -> Tensor:
        """Bool ``[out, in]``: which weights are held."""
        return self.grid.mask(self.places())

    def values(self) -> Tensor:
        """``[units, size]``, a view of the pool; no gradient."""
        return self.pool.slots(self.pool.parameter.detach(), self.index)

    def gradient_of_held(self) -> Tensor | None:
        """``[units, size]``, the optimizer's gradient of the held units, or None."""
        grad = self.pool.parameter.grad
        return None if grad is None else self.pool.slots(grad, self.index)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias`` for x ``[..., in]``, through the kernel or by scatter, as the placement says."""
        values, whole = self._segment()
        autocast = torch.is_autocast_enabled(x.device.type)
        if autocast:
            x = x.to(values.dtype)
        elif x.dtype != values.dtype:
            raise RuntimeError(f"{self.name}: input is {x.dtype}, weight is {values.dtype}; convert one of them")
        pool, grid = self.pool, self.grid
        out = packed_linear(
            x, values, bias, whole, pool.extents, self.index, pool.row_pointer(self.index), pool.columns,
            pool.compute, grid.height, grid.width, grid.r, grid.c, self.tap.number,
        )  # fmt: skip
        return out.to(torch.get_autocast_dtype(x.device.type)) if autocast else out

    def over(self, x: Tensor, base: Tensor, bias: Tensor | None) -> Tensor:
        """The layer of weight ``base [out, in]`` with this delta, for x ``[..., in]``; in the dtype of the input."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            narrow = torch.get_autocast_dtype(kind)
            x, base, bias = x.to(narrow), base.to(narrow), None if bias is None else bias.to(narrow)
        if x.dtype != base.dtype:
            raise RuntimeError(f"{self.name}: input is {x.dtype}, weight is {base.dtype}; convert one of them")
        with torch.autocast(kind, enabled=False):
            if torch.compiler.is_compiling():
                out = torch.nn.functional.linear(x, base, bias)
                total: Tensor = out + self.linear(x.to(self.pool.parameter.dtype), None).to(out.dtype)
                return total
            values, whole = self._segment()
            pool, grid = self.pool, self.grid
            layout = Layout(grid.height, grid.width, grid.r, grid.c)
            where = Site(
                whole, pool.extents, self.index, pool.row_pointer(self.index), pool.columns, layout, self.tap.number
            )
            return delta_linear(x, base, bias, values, where, pool.compute)

    def sum_with(self, base: Tensor) -> Tensor:
        """``base [out, in]`` plus this delta, differentiable."""
        total: Tensor = base + self.weight().to(base.dtype)
        return total

    def weight(self) -> Tensor:
        """The dense weight ``[out, in]``, differentiable, for code that reads it without calling `forward`."""
        values, whole = self._segment()
        pool, grid = self.pool, self.grid
        return packed_weight(
            values, whole, pool.extents, self.index, pool.row_pointer(self.index), pool.columns,
            grid.height, grid.width, grid.r, grid.c, self.tap.number,
        )  # fmt: skip

    def _segment(self) -> tuple[Tensor, bool]:
        values, whole = self.pool.segment(self.index)
        return (values.detach() if self.frozen else values), whole


@final
class PackedLinear(nn.Linear):
    """`nn.Linear` over a packed site. A layer becomes one by its class, so every reference to it stays valid."""

    realloc_site: PackedSite
    realloc_class: type[nn.Linear]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        return self.realloc_site.linear(input, self.bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense weight, read-only: a new differentiable tensor at each read."""
        return self.realloc_site.weight()

    def requires_grad_(self, requires_grad: bool = True) -> PackedLinear:
        """Freeze or thaw the layer; its slots in the pool then take no part in the step."""
        self.realloc_site.frozen = not requires_grad
        super().requires_grad_(requires_grad)
        return self

    def reset_parameters(self) -> None:
        """Refuse: the values live in the pool."""
        raise RuntimeError(f"{self.realloc_site.name}: detach() before resetting a packed layer")

    def extra_repr(self) -> str:
        """What torch prints, and what is held."""
        return f"{super().extra_repr()}, held={self.realloc_site.held}"


def pack(module: nn.Linear, site: PackedSite) -> None:
    """Turn a plain layer into a packed one in place. Its values must already be in the pool."""
    original = type(module)
    site.bias_trains = module.bias is not None and module.bias.requires_grad
    del module._parameters["weight"]
    module.__class__ = PackedLinear
    state: dict[str, Any] = module.__dict__
    state["realloc_site"], state["realloc_class"] = site, original


def half_frozen(root: nn.Module) -> list[str]:
    """Names of packed layers whose bias was frozen after they were packed while their weight still trains.

    Freezing a container reaches the parameters it owns; the values of a packed layer belong to the root's pool.
    """
    packed = [m for m in root.modules() if isinstance(m, PackedLinear) and m.realloc_site.bias_trains]
    frozen = [m.realloc_site for m in packed if not m.bias.requires_grad]
    return [site.name for site in frozen if not site.frozen and site.pool.parameter.requires_grad]


def unpack(module: PackedLinear, weight: nn.Parameter) -> None:
    """Give a packed layer its own dense weight and its old class back, parameters in the old order."""
    original = module.realloc_class
    rest = dict(module._parameters)
    module._parameters.clear()
    module._parameters["weight"] = weight
    module._parameters.update(rest)
    module.__class__ = original  # type: ignore[assignment]
    del module.__dict__["realloc_site"], module.__dict__["realloc_class"]
