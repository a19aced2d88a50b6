"""A parameter whose shape follows widths: one dense segment of a pool, of which its layer computes from a view."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, Protocol, final

import torch
from torch import Tensor, nn

from realloc.allocate.width_costs import Member
from realloc.kernels.taps import Tap, notify
from realloc.sites.grid import Grid


class Width(Protocol):
    """A pool of widths, as a site sees it."""

    @property
    def parameter(self) -> nn.Parameter:
        """The values, ``(n, 1)``."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Units that each group holds."""

    def bounds(self, index: int) -> tuple[int, int]:
        """First and past-last slot of a site."""

    def segment(self, index: int) -> tuple[Tensor, bool]:
        """Values of a site for the forward pass, and whether they are the whole pool."""

    def running(self, part: str, index: int) -> Tensor:
        """A running statistic of a norm, by its weight's site."""


@final
class WideSite:
    """One parameter in a pool of widths. ``held`` counts its entries now, ``capacity`` those it started with."""

    storage: ClassVar[str] = "wide"
    compute: ClassVar[str] = "dense"

    def __init__(self, member: Member, start: tuple[int, ...], pool: Width, index: int) -> None:
        self.name = member.name
        self.member = member
        self.capacity = member.parameters(start)
        self.pool = pool
        self.index = index
        self.tap = Tap()
        self.frozen = False

    def __repr__(self) -> str:
        return f"WideSite({self.name!r}, shape={self.shape})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape at the widths of now."""
        return self.member.shape(self.pool.widths)

    @property
    def held(self) -> int:
        """Entries now."""
        first, last = self.pool.bounds(self.index)
        return last - first

    @property
    def grid(self) -> Grid:
        """Its entries, each by itself."""
        return Grid(self.held, 1)

    def places(self) -> Tensor:
        """int64: all of them."""
        return torch.arange(self.held, device=self.pool.parameter.device)

    def values(self) -> Tensor:
        """``[entries, 1]``; no gradient."""
        first, last = self.pool.bounds(self.index)
        return self.pool.parameter.detach()[first:last]

    def mask(self) -> Tensor:
        """Bool of its shape: every entry is held."""
        return torch.ones(self.shape, dtype=torch.bool, device=self.pool.parameter.device)

    def of(self, flat: Tensor) -> Tensor:
        """Its part of a pool-shaped tensor, in its own shape: a view."""
        first, last = self.pool.bounds(self.index)
        return flat[first:last].view(self.shape)

    def gradient_of_held(self) -> Tensor | None:
        """The optimizer's gradient, or None."""
        grad = self.pool.parameter.grad
        return None if grad is None else self.of(grad)

    def weight(self) -> Tensor:
        """The parameter, differentiable: a view of the pool."""
        found = _segment(self) if torch.compiler.is_compiling() else self.pool.segment(self.index)[0]
        return found.detach() if self.frozen else found


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _segment(site: WideSite) -> Tensor:
    """Its view, outside a compiled graph."""
    return site.pool.segment(site.index)[0]


def _linear(module: Any, x: Tensor) -> Tensor:
    return watched(module, x, torch.nn.functional.linear(x, module.weight, module.bias))


def _conv(module: Any, x: Tensor) -> Tensor:
    return watched(module, x, module._conv_forward(x, module.weight, module.bias))


def _norm(module: Any, x: Tensor) -> Tensor:
    return watched(module, x, nn.modules.batchnorm._BatchNorm.forward(module, x))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _apart(module: Any, x: Tensor, compute: Callable[[Any, Tensor], Tensor]) -> Tensor:
    return compute(module, x)


def computed(module: Any, x: Tensor, compute: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """What a layer gives out; outside a compiled graph, since its shape really changes."""
    return _apart(module, x, compute) if torch.compiler.is_compiling() else compute(module, x)


def watched(module: Wide, x: Tensor, y: Tensor) -> Tensor:
    """If a layer is armed, note in the backward of ``y`` what it saw: ``x`` and the gradient of y."""
    taps = [site.tap for site in module.realloc_sites.values() if site.tap.armed and not site.frozen]
    if taps and y.requires_grad:
        y.register_hook(partial(_notify, [tap.number for tap in taps], x.detach()))  # type: ignore[no-untyped-call]
    return y


def _notify(numbers: list[int], x: Tensor, gradient: Tensor) -> None:
    for number in numbers:
        notify(number, x, gradient)


def _parameter(name: str) -> Any:
    def read(module: Any) -> Tensor | None:
        site: WideSite | None = module.realloc_sites.get(name)
        plain: Tensor | None = module._parameters.get(name)
        return plain if site is None else site.weight()

    return property(read, doc=f"The {name}: a view of its pool where its shape follows a width.")


def _entries(axis: int) -> Any:
    def read(module: Any) -> int:
        return int(module.weight.shape[axis])

    return property(read, doc="Its size now.")


def _running(part: str) -> Any:
    def read(module: Any) -> Tensor | None:
        site: WideSite = module.realloc_sites["weight"]
        return site.pool.running(part, site.index)

    return property(read, doc="A running statistic, updated in place: a view of its pool's buffer.")


def _freeze(module: Any, requires_grad: bool = True) -> Any:
    """Freeze or thaw the layer; its slots in the pool then take no part in the step."""
    for site in module.realloc_sites.values():
        site.frozen = not requires_grad
    for parameter in module._parameters.values():
        if parameter is not None:
            parameter.requires_grad_(requires_grad)
    return module


def _refuse(module: Any) -> None:
    name = next(iter(module.realloc_sites.values())).name
    raise RuntimeError(f"{name}: detach() before resetting a layer whose width moves")


@final
class WideLinear(nn.Linear):
    """`nn.Linear` whose shape follows widths. A layer becomes one by its class, so every reference stays valid."""

    realloc_sites: dict[str, WideSite]
    realloc_class: type[nn.Module]
    realloc_trains: bool  # whether it has a parameter beside the pools that trained at the start
    weight, bias = _parameter("weight"), _parameter("bias")
    in_features, out_features = _entries(1), _entries(0)
    requires_grad_, reset_parameters = _freeze, _refuse

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        return computed(self, input, _linear)


@final
class WideConv2d(nn.Conv2d):
    """`nn.Conv2d` whose shape follows widths."""

    realloc_sites: dict[str, WideSite]
    realloc_class: type[nn.Module]
    realloc_trains: bool  # whether it has a parameter beside the pools that trained at the start
    weight, bias = _parameter("weight"), _parameter("bias")
    in_channels, out_channels = _entries(1), _entries(0)
    requires_grad_, reset_parameters = _freeze, _refuse

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[B, in_channels, H, W]``."""
        return computed(self, input, _conv)


@final
class WideBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose shape follows a width."""

    realloc_sites: dict[str, WideSite]
    realloc_class: type[nn.Module]
    realloc_trains: bool  # whether it has a parameter beside the pools that trained at the start
    weight, bias, num_features = _parameter("weight"), _parameter("bias"), _entries(0)
    running_mean, running_var = _running("running_mean"), _running("running_var")
    requires_grad_, reset_parameters = _freeze, _refuse

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[B, C]`` or ``[B, C, L]``."""
        return computed(self, input, _norm)


@final
class WideBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose shape follows a width."""

    realloc_sites: dict[str, WideSite]
    realloc_class: type[nn.Module]
    realloc_trains: bool  # whether it has a parameter beside the pools that trained at the start
    weight, bias, num_features = _parameter("weight"), _parameter("bias"), _entries(0)
    running_mean, running_var = _running("running_mean"), _running("running_var")
    requires_grad_, reset_parameters = _freeze, _refuse

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[B, C, H, W]``."""
        return computed(self, input, _norm)


Wide = WideLinear | WideConv2d | WideBatchNorm1d | WideBatchNorm2d
WIDE: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.Linear: WideLinear,
    nn.Conv2d: WideConv2d,
    nn.BatchNorm1d: WideBatchNorm1d,
    nn.BatchNorm2d: WideBatchNorm2d,
}
SIZES: Final = {
    WideLinear: {"out_features": 0, "in_features": 1},
    WideConv2d: {"out_channels": 0, "in_channels": 1},
    WideBatchNorm1d: {"num_features": 0},
    WideBatchNorm2d: {"num_features": 0},
}


def widen(module: nn.Module, sites: dict[str, WideSite]) -> None:
    """Turn a plain layer into one whose shape follows widths, in place. Its values must be in their pools already."""
    original = type(module)
    for name in sites:
        del module._parameters[name]
    for name in ("running_mean", "running_var"):
        module._buffers.pop(name, None)
    module.__class__ = WIDE[original]
    state: dict[str, Any] = module.__dict__
    state["realloc_sites"], state["realloc_class"] = sites, original
    state["realloc_trains"] = any(p is not None and p.requires_grad for p in module._parameters.values())


def half_frozen_widths(root: nn.Module) -> list[str]:
    """Names of layers whose own bias was frozen after `attach` while what they have in pools still trains.

    Freezing a container reaches the parameters it owns; those of a wide layer belong to the root's pools.
    """
    found = []
    for module in root.modules():
        if isinstance(module, Wide) and module.realloc_trains:
            still = [site for site in module.realloc_sites.values() if not site.frozen]
            frozen = all(p is None or not p.requires_grad for p in module._parameters.values())
            found += [site.name for site in still[:1] if frozen and site.pool.parameter.requires_grad]
    return found


def settle(module: Wide, parameters: dict[str, nn.Parameter]) -> None:
    """Give a layer parameters of its own, at the shapes of now, and its old class back."""
    sizes = {name: int(module.weight.shape[axis]) for name, axis in SIZES[type(module)].items()}
    norm = isinstance(module, WideBatchNorm1d | WideBatchNorm2d)
    running = {name: getattr(module, name).clone() for name in ("running_mean", "running_var")} if norm else {}
    rest = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: parameters.get(name, rest.get(name)) for name in ("weight", "bias")})
    rest_of = dict(module._buffers)
    module._buffers.clear()
    module._buffers.update(running | rest_of)  # in torch's order
    module.__class__ = module.realloc_class  # type: ignore[assignment]
    module.__dict__.update(sizes)
    for name in ("realloc_sites", "realloc_class", "realloc_trains"):
        del module.__dict__[name]
