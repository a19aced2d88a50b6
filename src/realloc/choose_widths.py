"""Which hidden dimensions of a model can move, and every parameter whose shape follows them. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, final

import torch
from torch import Tensor, nn

from realloc.allocate.width_costs import Axis, Member, Space
from realloc.errors import ConfigError, nearest, plain
from realloc.find_coupled import coupled
from realloc.find_widths import Found, Side, chains, heads_and_units
from realloc.methods.width_method import WidthMethod


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """The space of a model, its widths now, and what stays as it is, and why."""

    space: Space
    widths: tuple[int, ...]
    others: tuple[tuple[str, str], ...]


def choose_widths(root: nn.Module, method: WidthMethod) -> Chosen:
    """Find the groups that a method may move.

    Raises:
        ConfigError: no group, a pattern without a match, or one that names a dimension which cannot move, and why not.
    """
    found, others = _found(root, method)
    names = [one.name for one in found]
    where = method.where
    for pattern in (*(where.layers or ()), *where.exclude):
        if not any(_named(name, pattern) for name in (*names, *(name for name, _ in others))):
            raise ConfigError(f"no hidden dimension matches {plain(pattern)!r}{nearest(pattern, names)}")
    for pattern in where.layers or ():
        stuck = next((pair for pair in others if _named(pair[0], pattern)), None)
        if stuck is not None and not any(_named(name, pattern) for name in names):
            raise ConfigError(f"the width of {plain(stuck[0])!r} cannot move: {stuck[1]}; name other layers")
    taken = [
        one
        for one in found
        if (where.layers is None or any(_named(one.name, p) for p in where.layers))
        and not any(_named(one.name, p) for p in where.exclude)
    ]
    if not taken:
        why = "; ".join(f"{plain(name)}: {reason}" for name, reason in others[:3])
        raise ConfigError(
            "no hidden dimension of this model can move" + (f" ({why})" if why else "")
            + "; build it of nn.Sequential, use a transformer of the known kinds, or give method.on(example=inputs)"
        )  # fmt: skip
    return Chosen(*_space(root, taken, method), tuple(others))


def _named(name: str, pattern: str) -> bool:
    return any(fnmatchcase(part, pattern) for part in (name, *name.split("+")))


def _found(root: nn.Module, method: WidthMethod) -> tuple[list[Found], list[tuple[str, str]]]:
    if method.example is not None:
        found, others = coupled(root, method.example)
        blocks, _ = heads_and_units(root)
        mine = {side.module for one in blocks for side in (*one.makers, *one.readers)}
        return [one for one in found if not mine & {side.module for side in one.sides}] + blocks, others
    found, others = chains(root)
    blocks, more = heads_and_units(root)
    return found + blocks, others + more


def _space(root: nn.Module, taken: Sequence[Found], method: WidthMethod) -> tuple[Space, tuple[int, ...]]:
    names = {module: name for name, module in root.named_modules(remove_duplicate=True)}
    positions = _positions(root, method.example)
    needs = method.currency == "FLOPs"
    rows: dict[nn.Module, tuple[int, Side]] = {}
    columns: dict[nn.Module, tuple[int, Side]] = {}
    norms: dict[nn.Module, tuple[int, Side]] = {}
    for group, one in enumerate(taken):
        for side in one.makers:
            rows[side.module] = group, side
        for side in one.readers:
            columns[side.module] = group, side
        for side in one.norms:
            norms[side.module] = group, side
    members = []
    for module in {**rows, **columns}:
        weight, name = _parameter(module, "weight"), names[module]
        made, read = rows.get(module), columns.get(module)
        out = Axis(made[0], made[1].block) if made else Axis(None, weight.shape[0])
        inward = Axis(read[0], read[1].block) if read else Axis(None, weight.shape[1])
        tail = tuple(weight.shape[2:])
        if needs and positions is None and tail:
            raise ConfigError("FLOPs of a convolution depend on the size of its output; give method.on(example=inputs)")
        places = 1 if positions is None else positions.get(module, 1)
        members.append(Member(f"{name}.weight", out, inward, tail, places))
        if made is not None and module._parameters.get("bias") is not None:
            members.append(Member(f"{name}.bias", out))
    for module, (group, side) in norms.items():
        axis = Axis(group, side.block)
        members.append(Member(f"{names[module]}.weight", axis, fill=1.0))
        members.append(Member(f"{names[module]}.bias", axis))
    widths = tuple(one.width for one in taken)
    where = method.where
    for one in taken:
        if where.least > one.width:
            raise ConfigError(f"least={where.least} is above the {one.width} units of {plain(one.name)}; lower it")
    least = tuple(where.least for _ in taken)
    most = tuple(max(1, int(where.most * width)) for width in widths)
    return Space(tuple(one.name for one in taken), least, most, tuple(members)), widths


def _parameter(module: nn.Module, name: str) -> Tensor:
    found = module._parameters[name]
    assert found is not None
    return found


def _positions(root: nn.Module, example: Any) -> dict[nn.Module, int] | None:
    """How many outputs each weight makes for one example, from one forward that changes nothing."""
    if example is None:
        return None
    found: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        inner = output.shape[2:] if isinstance(module, nn.Conv2d) else output.shape[1:-1]
        found[module] = found.get(module, 0) + int(torch.Size(inner).numel())

    watched = [m for m in root.modules() if type(m) in (nn.Linear, nn.Conv2d)]
    hooks = [module.register_forward_hook(note) for module in watched]
    try:
        with _apart(root):
            _call(root, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _call(root: nn.Module, example: Any) -> Any:
    """One forward on an example: a tensor, a tuple of arguments or a mapping of keywords."""
    if isinstance(example, dict):
        return root(**example)
    return root(*example) if isinstance(example, tuple) else root(example)


@contextmanager
def _apart(root: nn.Module) -> Iterator[None]:
    """A forward that leaves modes, running statistics and random streams as they were."""
    modes = {module: module.training for module in root.modules()}
    root.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
