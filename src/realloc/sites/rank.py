"""The ranks of a frozen linear layer: its unit is one row of A and one row of B together, kept in a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError, plain
from realloc.kernels.rank_graph import rank_part
from realloc.kernels.rank_product import factors, rank_linear, rank_weight
from realloc.kernels.taps import Tap
from realloc.sites.grid import Grid
from realloc.sites.seat import Segments
from realloc.sites.turned import turned


@final
class RankSite:
    """The ranks of one layer. ``held`` and ``capacity`` count parameters, ``rank`` and ``cap`` ranks.

    A rank costs ``in + out`` parameters. Which ranks are held is read from the pool, so that a loaded, copied or moved
    model is right without a call; a rank's *place* is its name among the ``cap`` that the layer may hold.
    """

    storage: ClassVar[str] = "rank"
    compute: ClassVar[str] = "dense"

    def __init__(self, name: str, shape: tuple[int, int], cap: int, scale: float, pool: Segments, index: int) -> None:
        self.name = name
        self.shape = shape  # of the layer's weight, (out, in), whichever way it is stored
        self.grid = Grid(cap, sum(shape), 1, sum(shape))
        self.scale = scale
        self.pool = pool
        self.index = index
        self.tap = Tap()
        self.frozen = False

    def __repr__(self) -> str:
        return f"RankSite({self.name!r}, rank={self.rank} of at most {self.cap}, {self.held:,} parameters)"

    @property
    def cap(self) -> int:
        """Most ranks that the layer may hold."""
        return self.grid.rows

    @property
    def capacity(self) -> int:
        """Parameters of so many."""
        return self.grid.rows * self.grid.size

    @property
    def rank(self) -> int:
        """Ranks held now."""
        return self.held // self.grid.size

    @property
    def held(self) -> int:
        """Parameters held now."""
        first, last = self.pool.bounds(self.index)
        return last - first

    def places(self) -> Tensor:
        """Sorted int64 places of the held ranks."""
        return self.pool.places(self.index)

    def mask(self) -> Tensor:
        """Bool ``[cap]``: which ranks are held."""
        held = torch.zeros(self.cap, dtype=torch.bool, device=self.pool.parameter.device)
        held[self.places()] = True
        return held

    def parts_of(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """A ``[r, in]`` and B ``[r, out]`` of a pool-shaped tensor, as views."""
        first, last = self.pool.bounds(self.index)
        return factors(flat[first:last], self.shape[1], self.shape[0])

    def factors(self) -> tuple[Tensor, Tensor]:
        """A ``[r, in]`` and B ``[r, out]``, views of the pool; no gradient. The layer adds ``scale * B'A``."""
        return self.parts_of(self.pool.parameter.detach())

    def values(self) -> Tensor:
        """``[ranks, in + out]``, gathered; no gradient."""
        return torch.cat(self.factors(), 1)

    def gradient_of_held(self) -> Tensor | None:
        """``[ranks, in + out]``, the optimizer's gradient of the held ranks, or None."""
        grad = self.pool.parameter.grad
        return None if grad is None else torch.cat(self.parts_of(grad), 1)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer for x ``[..., in]`` and a weight ``[out, in]``, in the dtype of the input or of autocast."""
        if torch.compiler.is_compiling():
            return self._compiled(x, weight, bias)
        if torch.is_autocast_enabled(x.device.type):
            dtype, device = torch.get_autocast_dtype(x.device.type), x.device.type
            with torch.autocast(device, enabled=False):
                narrow = None if bias is None else bias.to(dtype)
                return rank_linear(x.to(dtype), weight.to(dtype), narrow, self._slots(), self.scale, self.tap.number)
        if x.dtype != weight.dtype:
            raise RuntimeError(f"{self.name}: input is {x.dtype}, weight is {weight.dtype}; convert one of them")
        return rank_linear(x, weight, bias, self._slots(), self.scale, self.tap.number)

    def _compiled(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.nn.functional.linear(x, weight, bias)
        slots, extents = self._slots(), self.pool.extents
        part = rank_part(x.to(out.dtype), slots, extents, self.index, self.shape[0], self.scale, self.tap.number)
        total: Tensor = out + part
        return total

    def weight(self, base: Tensor) -> Tensor:
        """``W + scale * B'A`` ``[out, in]``, differentiable."""
        if torch.compiler.is_compiling():  # the ranks' part of each unit vector
            eye = torch.eye(self.shape[1], dtype=base.dtype, device=base.device)
            return self._compiled(eye, base, None).t()
        return rank_weight(base, self._slots(), self.scale, self.tap.number)

    def _slots(self) -> Tensor:
        slots = self.pool.segment(self.index)[0]
        return slots.detach() if self.frozen else slots


@final
class RankLinear(nn.Linear):
    """`nn.Linear` with ranks beside a frozen weight. A layer becomes one by its class, as a packed one does."""

    realloc_site: RankSite
    realloc_class: type[nn.Linear]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        return self.realloc_site.linear(input, frozen_weight(self), self._parameters["bias"])

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight with its ranks added, read-only: a new differentiable tensor at each read."""
        return self.realloc_site.weight(frozen_weight(self))

    def requires_grad_(self, requires_grad: bool = True) -> RankLinear:
        """Freeze or thaw the ranks; the weight and the bias stay frozen."""
        self.realloc_site.frozen = not requires_grad
        return self

    def reset_parameters(self) -> None:
        """Refuse: the ranks live in the pool."""
        raise RuntimeError(f"{self.realloc_site.name}: detach() before resetting a layer with ranks")

    def extra_repr(self) -> str:
        """What torch prints, and the rank."""
        return f"{super().extra_repr()}, rank={self.realloc_site.rank}"


@final
class RankConv1D(nn.Module):
    """`Conv1D` of transformers with ranks beside a frozen weight, which is stored ``[in, out]``."""

    realloc_site: RankSite
    realloc_class: type[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``[..., in]``."""
        return self.realloc_site.linear(x, frozen_weight(self), self._parameters["bias"])

    @property
    def weight(self) -> Tensor:
        """The weight ``[in, out]`` with its ranks added, read-only: a new differentiable tensor at each read."""
        return self.realloc_site.weight(frozen_weight(self)).t()

    def requires_grad_(self, requires_grad: bool = True) -> RankConv1D:
        """Freeze or thaw the ranks; the weight and the bias stay frozen."""
        self.realloc_site.frozen = not requires_grad
        return self

    def extra_repr(self) -> str:
        """What `nn.Linear` prints, and the rank."""
        out, inward = self.realloc_site.shape
        return f"in_features={inward}, out_features={out}, rank={self.realloc_site.rank}"


Ranked = RankLinear | RankConv1D


def frozen_weight(module: Ranked) -> Tensor:
    """The weight that the layer came with, without its ranks, as ``[out, in]``: a view of what is stored."""
    stored = module._parameters["weight"]
    assert stored is not None
    return stored.t() if isinstance(module, RankConv1D) else stored


def add_ranks(module: nn.Module, site: RankSite) -> None:
    """Turn a plain layer into one with ranks, in place."""
    original = type(module)
    module.__class__ = RankConv1D if turned(module) else RankLinear
    state: dict[str, Any] = module.__dict__
    state["realloc_site"], state["realloc_class"] = site, original


def drop_ranks(module: Ranked) -> None:
    """Give the layer its old class back. Its weight stays as it is."""
    module.__class__ = module.realloc_class  # type: ignore[assignment]
    del module.__dict__["realloc_site"], module.__dict__["realloc_class"]


def check_rank(rank: int, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse a rank that no layer has; one that has fewer than others holds all of its own.

    Args:
        rank: that was asked for.
        shapes: of the weights that may hold ranks, by name.

    Raises:
        ConfigError: it is above the most of every layer.

    >>> check_rank(9, {"a.weight": (4, 8), "b.weight": (2, 2)})
    Traceback (most recent call last):
    ...
    realloc.errors.ConfigError: rank is 9 and no layer has so many: the most, 4, has a.weight; take a rank from 1 to 4
    """
    most, name = max((min(shape), name) for name, shape in shapes.items())
    if rank > most:
        raise ConfigError(
            f"rank is {f'{rank:,}'[:40]} and no layer has so many: the most, {most:,}, has {plain(name)}; take a rank "
            f"from 1 to {most:,}"
        )
