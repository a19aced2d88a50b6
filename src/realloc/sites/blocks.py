"""The blocks of a model, from input to output, and what runs below and above them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from torch import nn

from realloc.errors import ConfigError
from realloc.sites.quantised import quantised


@final
@dataclass(frozen=True, eq=False)
class Blocks:
    """Equal layers that a model runs one after the other; each holds one unit, its right to train."""

    name: str  # of the module that lists them
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    base: nn.Module | None  # the module whose inputs say what an example is; None: unknown to the cache
    gates: tuple[nn.Module, ...]  # what passes its input on where a prefix is read: the blocks, and what lies between
    ends: tuple[int, ...]  # by block, how many gates are passed once it has run
    tops: tuple[nn.Module, ...]  # what runs after the last block
    above: tuple[nn.Parameter, ...]  # their parameters that nothing below reads: the head
    below: tuple[nn.Parameter, ...]  # every other parameter outside the blocks: the embeddings

    def __len__(self) -> int:
        return len(self.modules)

    def parameters(self, index: int) -> tuple[nn.Parameter, ...]:
        """Those of one block; one that a lower block shares belongs to that one, one from outside to the outside."""
        taken = {id(p) for p in (*self.above, *self.below)}
        taken |= {id(p) for module in self.modules[:index] for p in module.parameters()}
        return tuple(p for p in self.modules[index].parameters() if id(p) not in taken)

    def trainable(self) -> tuple[tuple[nn.Parameter, ...], ...]:
        """Those of each block that require a gradient now: what the user had frozen is not ours to train."""
        return tuple(tuple(p for p in self.parameters(i) if p.requires_grad) for i in range(len(self)))

    def lower(self, count: int) -> tuple[nn.Module, ...]:
        """Every module of the base that runs below the end of block ``count - 1``: not its containers, not the head."""
        assert self.base is not None and count > 0
        upper = {id(m) for top in (*self.gates[self.ends[count - 1] :], *self.tops) for m in top.modules()}
        holders = {id(m) for m in _holders(self.base, self.modules[0])}
        return tuple(m for m in self.base.modules() if id(m) not in upper | holders)


def blocks_of(root: nn.Module) -> Blocks:
    """Find the blocks: the largest list of modules of one class, or the children of an nn.Sequential.

    Raises:
        ConfigError: there is neither, or one layer only.

    >>> found = blocks_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> found.names, found.ends, len(found.above), len(found.below)
    (('0', '2'), (1, 3), 2, 0)
    """
    listed = [
        (sum(p.numel() for p in module.parameters()), name, module)
        for name, module in root.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(m) for m in module}) == 1
    ]
    if listed:
        _, name, found = max(listed, key=lambda row: row[0])
        return _of_list(root, name, found)
    for name, module in root.named_modules():
        if isinstance(module, nn.Sequential) and sum(_holds(child) for child in module) > 1:
            return _of_sequential(root, name, module)
    alone = next(
        (n for n, m in root.named_modules() if isinstance(m, nn.ModuleList) and len(m) == 1 and _holds(m)), None
    )
    if alone is not None:
        raise ConfigError(
            f"{type(root).__name__} has one layer only, in {alone!r}; layers that train in turn need at least two: "
            "give a model with more, or keep more of its layers"
        )
    raise ConfigError(
        f"{type(root).__name__} has no blocks: neither a ModuleList of equal layers nor an nn.Sequential of at least "
        f"two layers with parameters; layers that train in turn need one{quantised(root)}"
    )


def _of_list(root: nn.Module, name: str, found: nn.ModuleList) -> Blocks:
    blocks = tuple(found)
    base = next((m for m in reversed(list(_holders(root, found))) if _pretrained(m)), None)
    names = tuple(f"{name}.{i}" if name else str(i) for i in range(len(blocks)))
    tops = _tops(root, base, found)
    above, below = _outside(root, blocks, tops)
    return Blocks(name, names, blocks, base, blocks, tuple(range(1, len(blocks) + 1)), tops, above, below)


def _of_sequential(root: nn.Module, name: str, found: nn.Sequential) -> Blocks:
    children = list(found)
    if len({id(child) for child in children}) < len(children):
        raise ConfigError(f"{name or type(found).__name__} runs one layer twice; give each place a layer of its own")
    held = [i for i, child in enumerate(children) if _holds(child)]
    blocks = tuple(children[i] for i in held[:-1])
    names = tuple(f"{name}.{i}" if name else str(i) for i in held[:-1])
    tops = (*children[held[-1] :], *(_tops(root, None, found) if found is not root else ()))
    above, below = _outside(root, blocks, tops)
    ends = tuple(i + 1 for i in held[:-1])
    return Blocks(name, names, blocks, found, tuple(children[: held[-1]]), ends, tops, above, below)


def _outside(
    root: nn.Module, blocks: tuple[nn.Module, ...], tops: tuple[nn.Module, ...]
) -> tuple[tuple[nn.Parameter, ...], tuple[nn.Parameter, ...]]:
    """Parameters of the head and of the rest. A tied weight, which something below reads too, is not the head's."""
    top = {id(m) for module in tops for m in module.modules()}
    inside = {id(p) for block in blocks for p in block.parameters()}
    read = {id(p) for m in root.modules() if id(m) not in top for p in m._parameters.values() if p is not None}
    outside = [p for p in root.parameters() if id(p) not in inside]
    return tuple(p for p in outside if id(p) not in read), tuple(p for p in outside if id(p) in read)


def _tops(root: nn.Module, base: nn.Module | None, listed: nn.Module) -> tuple[nn.Module, ...]:
    """What is declared after the branch that holds the blocks, in the base and in whatever holds the base.

    Inside the base's own encoder nothing counts: DeBERTa's relative positions stand after its layers, and every layer
    reads them.
    """
    path = [*_holders(root, listed), listed]
    last = path.index(base) if base in path else len(path) - 2
    found: list[nn.Module] = []
    for holder, branch in pairwise(path[: last + 2]):
        children = list(holder.children())
        found += children[next(i for i, child in enumerate(children) if child is branch) + 1 :]
    return tuple(found)


def _holders(root: nn.Module, inner: nn.Module) -> Iterator[nn.Module]:
    """The modules on the way from the root down to one, without it."""
    here = root
    while here is not inner:
        yield here
        here = next(child for child in here.children() if any(m is inner for m in child.modules()))


def _holds(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _pretrained(module: nn.Module) -> bool:
    """Whether it is a model of transformers, which is not imported for that."""
    return any(
        c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )
