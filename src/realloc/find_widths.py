"""Hidden dimensions that can be read off a model without running it: chains of layers, transformer blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

from torch import nn


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

    @property
    def sides(self) -> tuple[Side, ...]:
        """Everything that has it."""
        return self.makers + self.readers + self.norms


Others = list[tuple[str, str]]

# layers that treat each unit alone, and keep it one unit
ALONE: Final = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Softplus, nn.ReLU6, nn.Mish,
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Flatten,
)  # fmt: skip
NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)


def chains(root: nn.Module) -> tuple[list[Found], Others]:
    """Dimensions within every `nn.Sequential`, nested ones run through."""
    found: list[Found] = []
    others: Others = []
    uses: dict[nn.Module, int] = {}
    for parent in root.modules():
        for child in parent.children():
            uses[child] = uses.get(child, 0) + 1
    inner = {child for module in root.modules() if isinstance(module, nn.Sequential) for child in module.children()}
    for name, module in root.named_modules():
        if type(module) is nn.Sequential and module not in inner:
            _walk([*_flat(name, module)], uses, found, others)
    return found, others


def _flat(name: str, module: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    for key, child in module.named_children():
        full = f"{name}.{key}" if name else key
        if type(child) is nn.Sequential:
            yield from _flat(full, child)
        else:
            yield full, child


def _walk(layers: list[tuple[str, nn.Module]], uses: dict[nn.Module, int], found: list[Found], others: Others) -> None:
    maker: tuple[str, nn.Module, int] | None = None
    norms: list[Side] = []
    for name, module in layers:
        size = _sizes(module)
        if size is not None:
            if maker is not None:
                start, made, width = maker
                if size[1] % width or uses[module] > 1 or uses[made] > 1:
                    others.append((start, f"{name} reads {size[1]} inputs, or is used twice"))
                else:
                    found.append(Found(start, width, (Side(made),), (Side(module, size[1] // width),), tuple(norms)))
            maker, norms = (name, module, size[0]), []
        elif maker is not None and type(module) in NORMS and _is_norm_of(module, maker[2]):
            norms.append(Side(module))
        elif maker is not None and type(module) not in ALONE:
            others.append((maker[0], f"it is followed by {name}, a {type(module).__name__}, which is not known here"))
            maker, norms = None, []


def _is_norm_of(module: nn.Module, width: int) -> bool:
    return bool(module.num_features == width and module.affine and module.track_running_stats)


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """Outputs and inputs of a layer whose widths can move."""
    if type(module) is nn.Linear:
        return module.out_features, module.in_features
    if type(module) is nn.Conv2d and module.groups == 1:
        return module.out_channels, module.in_channels
    return None


@final
@dataclass(frozen=True)
class Block:
    """How a family of transformers names the layers round a hidden dimension, below one module."""

    makers: tuple[str, ...]
    reader: str
    heads: bool = False
    also: tuple[str, ...] = ()  # must be there, or the block is of another family


BLOCKS: Final = (
    Block(("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense", True),
    Block(("intermediate.dense",), "output.dense"),
    Block(("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", True),
    Block(("ffn.lin1",), "ffn.lin2"),
    Block(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", True),
    Block(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    Block(("linear1",), "linear2", also=("self_attn",)),
)


def heads_and_units(root: nn.Module) -> tuple[list[Found], Others]:
    """Heads and feed-forward units of transformers whose layer names are known."""
    modules = dict(root.named_modules())
    found: list[Found] = []
    others: Others = []
    for name in modules:
        for block in BLOCKS:
            mine = [modules.get(_join(name, part)) for part in (*block.makers, block.reader)]
            extra = [modules.get(_join(name, part)) for part in block.also]
            if any(module is None for module in (*mine, *extra)):
                continue
            start = _join(name, block.makers[0])
            strange = next((m for m in mine if type(m) is not nn.Linear), None)
            if strange is not None:
                others.append((start, f"one of its layers is a {type(strange).__name__}, not a plain nn.Linear"))
                continue
            *makers, reader = [module for module in mine if isinstance(module, nn.Linear)]
            width = (
                _heads(modules[_join(name, block.makers[0]).rpartition(".")[0]], makers)
                if block.heads
                else makers[0].out_features
            )
            if width is None:
                others.append((start, "the size of its heads is not known"))
                continue
            sides = tuple(Side(module, module.out_features // width) for module in makers)
            found.append(Found(start, width, sides, (Side(reader, reader.in_features // width),)))
    return found, others


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _heads(attention: nn.Module, makers: list[nn.Linear]) -> int | None:
    """How many heads, or groups of heads that share keys, can move."""
    for name in ("attention_head_size", "head_dim"):
        size = getattr(attention, name, None)
        if isinstance(size, int) and size > 0 and all(m.out_features % size == 0 for m in makers):
            width = min(m.out_features for m in makers) // size
            return width if all(m.out_features % width == 0 for m in makers) else None
    heads, dim = getattr(attention, "n_heads", None), getattr(attention, "dim", None)
    return heads if isinstance(heads, int) and isinstance(dim, int) and dim % heads == 0 else None
