"""Heads and feed-forward units of transformers, by the names that their families give to the layers round them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Final, final

from torch import nn

from realloc.find_widths import Alone, Dimensions, Found, Side, sizes_of


@final
@dataclass(frozen=True)
class Block:
    """How a family of transformers names the layers round a hidden dimension, below one module."""

    makers: tuple[str, ...]
    reader: str
    heads: bool = False
    also: tuple[str, ...] = ()  # must be there, or the block is of another family
    activation: str = ""  # where the function stands that each unit passes through, if one layer makes them


BLOCKS: Final = (
    Block(("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense", True),
    Block(("intermediate.dense",), "output.dense", activation="intermediate.intermediate_act_fn"),
    Block(("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin", True),
    Block(("ffn.lin1",), "ffn.lin2", activation="ffn.activation"),
    Block(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", True),
    Block(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    Block(("linear1",), "linear2", also=("self_attn",), activation="activation"),
)
SIZES: Final = ("attention_head_size", "head_dim")  # what attention calls the size of a head
# what it may call how many there are, or the size of all: code that reads one would not follow a move
COUNTS: Final = frozenset({
    "num_attention_heads", "num_heads", "n_heads", "n_head", "num_key_value_heads", "num_kv_heads", "all_head_size",
    "embed_dim", "hidden_size", "inner_dim",
})  # fmt: skip


def heads_and_units(root: nn.Module) -> Dimensions:
    """Heads and feed-forward units of transformers whose layer names are known."""
    modules, every = dict(root.named_modules()), Dimensions()
    for name in modules:
        for block in BLOCKS:
            made = [modules.get(_join(name, part)) for part in block.makers]
            read = modules.get(_join(name, block.reader))
            extra = [modules.get(_join(name, part)) for part in block.also]
            if read is None or any(module is None for module in (*made, *extra)):
                continue
            start = _join(name, block.makers[0])
            holder = modules[start.rpartition(".")[0]]
            found = _found(start, block, holder, [m for m in made if m is not None], read, modules[name])
            if isinstance(found, str):
                every.others.append((start, found))
            else:
                every.found.append(found)
    return every


def _found(
    start: str, block: Block, holder: nn.Module, made: list[nn.Module], reader: nn.Module, whole: nn.Module
) -> Found | str:
    """The dimension, or why it cannot move. ``holder``: of the first maker; ``whole``: of all the block's layers."""
    sizes = [sizes_of(module) for module in (*made, reader)]
    for module, both in zip((*made, reader), sizes, strict=True):
        if both is None or not isinstance(module, nn.Linear):
            return f"one of its layers is a {type(module).__name__} and no plain nn.Linear"
    outs, inputs = [both[0] for both in sizes[:-1] if both is not None], sizes[-1][1] if sizes[-1] else 0
    size = _head_size(holder, outs) if block.heads else 1
    width = min(outs) // size if size else 0
    if not width or any(out % width for out in (*outs, inputs)):
        return "the size of its heads is not known"
    if block.heads and (count := _count_read(holder)):
        return f"the code of {type(holder).__name__} reads {count}, which would not follow"
    between = None
    if len(made) == 1:
        activation = _at(whole, block.activation)
        if isinstance(activation, nn.Module) and any(p.numel() != 1 for p in activation.parameters()):
            return f"its {type(activation).__name__} has a parameter for each unit, which would not follow"
        between = None if activation is None else (activation,)
    if holder is not whole:
        mine = {id(p) for module in (*made, reader) for p in module.parameters()}
        for name, parameter in holder.named_parameters():
            if id(parameter) not in mine and tuple(parameter.shape) != (size,):
                return f"{type(holder).__name__} has {name} beside its layers, which may follow its width"
    sides = tuple(Side(module, out // width) for module, out in zip(made, outs, strict=True))
    return Found(start, width, sides, (Side(reader, inputs // width),), between=between)


def _at(module: nn.Module, path: str) -> Alone | None:
    """A module or function at a dotted path."""
    found: object = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else None


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _head_size(attention: nn.Module, outs: list[int]) -> int:
    """Entries of one head; 0: not known."""
    for name in SIZES:
        size = getattr(attention, name, None)
        if isinstance(size, int) and size > 0 and all(out % size == 0 for out in outs):
            return size
    heads, dim = getattr(attention, "n_heads", None), getattr(attention, "dim", None)
    return dim // heads if isinstance(heads, int) and isinstance(dim, int) and heads and dim % heads == 0 else 0


def _count_read(attention: nn.Module) -> str | None:
    """A count of heads that the forward of an attention reads, itself or in its own methods."""
    methods: Mapping[str, object] = {
        name: inspect.unwrap(found)
        for cls in reversed(type(attention).__mro__[: type(attention).__mro__.index(nn.Module)])
        for name, found in vars(cls).items()
        if isinstance(found, FunctionType)
    }
    waiting, seen = ["forward"], set[str]()
    while waiting:
        name = waiting.pop()
        method = methods.get(name)
        if name in seen or not isinstance(method, FunctionType):
            continue
        seen.add(name)
        names = method.__code__.co_names
        count = next((one for one in names if one in COUNTS), None)
        if count is not None:
            return count
        waiting += [one for one in names if one in methods]
    return None
