"""The groups of parameters that share a budget of learning rate, in order from the input."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import nn

from realloc.errors import ConfigError, plain
from realloc.sites.blocks import blocks_of

By = Literal["layers", "groups"] | Callable[[str], Hashable]
Parameters = tuple[nn.Parameter, ...]


@final
@dataclass(frozen=True, eq=False)
class RateUnits:
    """Named groups of trainable parameters; none is in two."""

    names: tuple[str, ...]
    parameters: tuple[Parameters, ...]

    def __len__(self) -> int:
        return len(self.names)


def rate_units(root: nn.Module, optimizer: torch.optim.Optimizer, by: By) -> RateUnits:
    """Find them among the parameters of a model that an optimizer trains.

    Raises:
        ConfigError: fewer than two.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> rate_units(net, torch.optim.SGD(net.parameters(), lr=0.1), "layers").names
    ('0', '2', 'above')
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in root.named_parameters()}
    if by == "groups":
        found = _of_groups(optimizer, names)
    elif callable(by):
        found = _by_key([(plain(str(by(name))), by(name), p) for name, p in root.named_parameters()])
    else:
        found = _layers(root)
    kept = [(name, tuple(p for p in group if id(p) in held and p.requires_grad)) for name, group in found]
    kept = [(name, group) for name, group in kept if group]
    if len(kept) < 2:
        raise ConfigError(
            f"{type(root).__name__} has {len(kept)} group{'s' * (len(kept) != 1)} of parameters that this optimizer "
            "trains; rate can only move between two and more: name them by=lambda parameter_name: ..."
        )
    names_found = [name for name, _ in kept]
    twice = {name for name in names_found if names_found.count(name) > 1}
    unique = (f"{name} ({number})" if name in twice else name for number, name in enumerate(names_found))
    return RateUnits(tuple(unique), tuple(group for _, group in kept))


def _of_groups(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> list[tuple[str, Parameters]]:
    groups: list[dict[str, Any]] = optimizer.param_groups
    return [
        (str(group.get("name", f"group {number}")), tuple(p for p in group["params"] if id(p) in names))
        for number, group in enumerate(groups)
    ]


def _layers(root: nn.Module) -> list[tuple[str, Parameters]]:
    """What lies below the blocks, each block, and what lies above; in a model without blocks each module of its own."""
    try:
        blocks = blocks_of(root)
    except ConfigError:
        return _by_key(
            [
                (name or type(module).__name__, name, p)
                for name, module in root.named_modules()
                for p in module.parameters(recurse=False)
            ]
        )
    inner = [(name, blocks.parameters(number)) for number, name in enumerate(blocks.names)]
    return [("below", blocks.below), *inner, ("above", blocks.above)]


def _by_key(rows: Iterable[tuple[str, Hashable, nn.Parameter]]) -> list[tuple[str, Parameters]]:
    """Group by key, in the order in which keys come; a tied parameter belongs where it comes first."""
    groups: dict[Hashable, tuple[str, list[nn.Parameter]]] = {}
    taken: set[int] = set()
    for name, key, parameter in rows:
        if id(parameter) not in taken:
            taken.add(id(parameter))
            groups.setdefault(key, (name, []))[1].append(parameter)
    return [(name, tuple(found)) for name, found in groups.values()]
