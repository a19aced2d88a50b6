"""Hidden dimensions that can be read off a model without running it: chains of layers in `nn.Sequential`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeGuard, final

from torch import Tensor, nn

Alone = Callable[[Tensor], Tensor]  # what each unit passes through by itself
Others = list[tuple[str, str]]  # dimensions that cannot move, and why


@final
@dataclass(frozen=True, eq=False)
class Side:
    """A layer on one side of a dimension, with as many entries for each unit."""

    module: nn.Module
    block: int = 1


@final
@dataclass(frozen=True, eq=False)
class Found:
    """One hidden dimension: who makes its units, who reads them, and the norms between."""

    name: str
    width: int
    makers: tuple[Side, ...]
    readers: tuple[Side, ...]
    norms: tuple[Side, ...] = ()
    between: tuple[Alone, ...] | None = None  # from the one maker to the one reader; None: not known

    @property
    def sides(self) -> tuple[Side, ...]:
        """Everything that has it."""
        return self.makers + self.readers + self.norms


@final
@dataclass(frozen=True, eq=False)
class Dimensions:
    """What was found in a model. ``behind``: layers, and the norm that reads the output of each and nothing else."""

    found: list[Found] = field(default_factory=list)
    others: Others = field(default_factory=list)
    behind: dict[nn.Module, nn.Module] = field(default_factory=dict)


POINTWISE: Final = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Softplus, nn.ReLU6, nn.Mish,
    nn.Identity, nn.Dropout,
)  # fmt: skip
# what treats each channel alone, and keeps it one channel
BY_CHANNEL: Final = (
    nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)


def chains(root: nn.Module) -> Dimensions:
    """Dimensions within every `nn.Sequential`, nested ones run through."""
    every = Dimensions()
    uses: dict[nn.Module, int] = {}  # in how many places a layer stands
    for _, module in root.named_modules(remove_duplicate=False):
        uses[module] = uses.get(module, 0) + 1
    for name, sequential in outermost(root):
        _walk([*in_turn(name, sequential)], uses, every)
    return every


def outermost(root: nn.Module) -> Iterator[tuple[str, nn.Sequential]]:
    """Every `nn.Sequential` that stands in no other, with its name."""
    inner = {child for module in root.modules() if _runs_in_turn(module) for child in module.children()}
    for name, module in root.named_modules():
        if _runs_in_turn(module) and module not in inner:
            yield name, module


def in_turn(name: str, module: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """Its layers in order, and those of nested ones; one that stands there twice comes twice."""
    for key, child in module._modules.items():
        full = f"{name}.{key}" if name else key
        if child is not None and _runs_in_turn(child):
            yield from in_turn(full, child)
        elif child is not None:
            yield full, child


def _runs_in_turn(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it gives to each of its layers what the one before gave: no subclass with a forward of its own."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


@final
class _Open:
    """A dimension whose reader has not come yet."""

    def __init__(self, name: str, module: nn.Module, width: int) -> None:
        self.name, self.module, self.width = name, module, width
        self.norms: list[Side] = []
        self.between: list[nn.Module] = []
        self.flat = False  # channels and positions lie in one dimension, channel after channel

    @property
    def images(self) -> bool:
        """Whether what comes out has channels."""
        return isinstance(self.module, nn.Conv2d) and not self.flat

    def passes(self, module: nn.Module) -> bool:
        """Whether each unit goes through a layer by itself. Notes it."""
        known = type(module) in POINTWISE or (self.images and type(module) in BY_CHANNEL)
        if type(module) is nn.Flatten:
            whole = module.start_dim == 1 and module.end_dim == -1
            known = whole or not isinstance(self.module, nn.Conv2d)
            self.flat = self.flat or whole
        elif is_norm(module):
            known = bool(module.num_features == self.width) and isinstance(module, nn.BatchNorm2d) == self.images
            self.norms += [Side(module)] if known else []
        if known:
            self.between.append(module)
        return known

    def block(self, reader: nn.Module, inputs: int) -> int | None:
        """How many inputs of a reader each unit is; None: they are not those of one unit after another."""
        if isinstance(reader, nn.Conv2d) != self.images:
            return None
        if isinstance(self.module, nn.Conv2d) and self.flat:
            return inputs // self.width if inputs % self.width == 0 else None
        return 1 if inputs == self.width else None


def _walk(layers: list[tuple[str, nn.Module]], uses: Mapping[nn.Module, int], every: Dimensions) -> None:
    start: _Open | None = None
    for name, module in layers:
        size = sizes_of(module)
        if size is not None:
            if start is not None:
                _close(start, name, module, size[1], uses, every)
            start = _Open(name, module, size[0])
        elif start is not None:
            if isinstance(module, NORMS) and not start.between and module.running_mean is not None:
                every.behind[start.module] = module
            if not start.passes(module):
                why = f"it is followed by {name}, a {type(module).__name__}, which is not known here"
                every.others.append((start.name, why))
                start = None


def _close(
    start: _Open, name: str, reader: nn.Module, inputs: int, uses: Mapping[nn.Module, int], every: Dimensions
) -> None:
    block = start.block(reader, inputs)
    twice = any(uses[module] > 1 for module in (start.module, reader, *(side.module for side in start.norms)))
    if twice:
        every.others.append((start.name, f"it, {name} or a norm between stands in the model twice"))
    elif block is None:
        every.others.append((start.name, f"{name} reads {inputs} inputs, which are not its {start.width} units"))
    else:
        made, read = (Side(start.module),), (Side(reader, block),)
        every.found.append(Found(start.name, start.width, made, read, tuple(start.norms), tuple(start.between)))


def is_norm(module: nn.Module) -> bool:
    """Whether a norm can be resized: it has a factor and running statistics."""
    return type(module) in NORMS and bool(module.affine and module.track_running_stats)


def sizes_of(module: nn.Module) -> tuple[int, int] | None:
    """Outputs and inputs of a layer whose widths can move; one whose weight is computed (a weight norm) cannot."""
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return None
    if type(module) is nn.Linear:
        return module.out_features, module.in_features
    if type(module) is nn.Conv2d and module.groups == 1:
        return module.out_channels, module.in_channels
    return None
