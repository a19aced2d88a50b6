"""Which hidden dimensions of a model can move, and every parameter whose shape follows them. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, final

import torch
from torch import Tensor, nn

from realloc.allocate.width_costs import Axis, Member, Space
from realloc.errors import ConfigError, nearest, plain
from realloc.find_blocks import heads_and_units
from realloc.find_coupled import coupled
from realloc.find_widths import Dimensions, Found, Others, Side, chains
from realloc.methods.width_method import WidthMethod
from realloc.observe.neurons import simple
from realloc.pool.found import movers
from realloc.scores.neurons import OPEN
from realloc.try_widths import apart, call, that_follow


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
    every = _dimensions(root, method)
    moved = movers(root)
    found, others = _free(root, every, moved)
    names = [one.name for one in found]
    where = method.where
    for pattern in (*(where.layers or ()), *where.exclude):
        if not any(_named(name, pattern) for name in (*names, *(name for name, _ in others))):
            gone = next((name for name in moved if fnmatchcase(name.rpartition(".")[0], pattern)), None)
            if gone is not None and pattern in where.exclude:
                continue
            if gone is not None:
                raise ConfigError(f"{plain(gone)} is moved by {moved[gone]} already; name other layers")
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
    if found and not taken:
        left = ", ".join(map(plain, names[:5]))
        raise ConfigError(f"every hidden dimension of this model is left out: {left}; exclude fewer, or name one")
    if not taken:
        why = "; ".join(f"{plain(name)}: {reason}" for name, reason in others[:3])
        raise ConfigError(
            "no hidden dimension of this model can move" + (f" ({why})" if why else "")
            + "; build it of nn.Sequential, use a transformer of the known kinds, or give method.on(example=inputs)"
        )  # fmt: skip
    for one in taken:
        if where.least > one.width:
            raise ConfigError(f"least={where.least} is above the {one.width} units of {plain(one.name)}; lower it")
    space = _space(root, taken, every, method)
    if "products" in method.needs:
        _refuse_without_products(space, method)
    return Chosen(space, tuple(one.width for one in taken), tuple(others))


def _free(root: nn.Module, every: Dimensions, moved: Mapping[str, str]) -> tuple[list[Found], Others]:
    """Those in which no other method moves a parameter; and the rest, with the reason."""
    names = {module: name for name, module in root.named_modules()}
    found, others = [], [*every.others]
    for one in every.found:
        sides = [f"{names[side.module]}.{key}" for side in one.sides for key in ("weight", "bias")]
        theirs = next((name for name in sides if name in moved), None)
        if theirs is None:
            found.append(one)
        else:
            others.append((one.name, f"{moved[theirs]} moves {theirs}"))
    return found, others


def _named(name: str, pattern: str) -> bool:
    return any(fnmatchcase(part, pattern) for part in (name, *name.split("+")))


def _dimensions(root: nn.Module, method: WidthMethod) -> Dimensions:
    """Those of known transformers, and those of chains or, with an example, of all that is coupled."""
    blocks, rest = heads_and_units(root), chains(root) if method.example is None else coupled(root, method.example)
    if method.example is not None:
        known, more = that_follow(root, method.example, blocks.found)
        blocks = Dimensions(known, blocks.others + more)
    mine = {side.module for one in blocks.found for side in (*one.makers, *one.readers)}
    found = [one for one in rest.found if not mine & {side.module for side in one.sides}] + blocks.found
    taken = {one.name for one in blocks.found}
    others = [pair for pair in rest.others if pair[0] not in taken] + blocks.others
    return Dimensions(found, others, rest.behind)


def _space(root: nn.Module, taken: Sequence[Found], every: Dimensions, method: WidthMethod) -> Space:
    names = {module: name for name, module in root.named_modules()}
    positions = _positions(root, method.example)
    if positions is not None and method.currency == "FLOPs":
        _refuse_unseen(taken, names, positions)
    rows: dict[nn.Module, tuple[int, Side]] = {}
    columns: dict[nn.Module, tuple[int, Side]] = {}
    for group, one in enumerate(taken):
        rows.update({side.module: (group, side) for side in one.makers})
        columns.update({side.module: (group, side) for side in one.readers})
    members = []
    for module in {**rows, **columns}:
        weight, name = _parameter(module, "weight"), names[module]
        made, read = rows.get(module), columns.get(module)
        out = Axis(made[0], made[1].block) if made else Axis(None, weight.shape[0])
        inward = Axis(read[0], read[1].block) if read else Axis(None, weight.shape[1])
        tail = tuple(weight.shape[2:])
        if method.currency == "FLOPs" and positions is None and tail:
            raise ConfigError("FLOPs of a convolution depend on the size of its output; give method.on(example=inputs)")
        places = 1 if positions is None else positions.get(module, 1)
        members.append(Member(f"{name}.weight", out, inward, tail, places))
        if made is not None and module._parameters.get("bias") is not None:
            members.append(Member(f"{name}.bias", out))
    for group, one in enumerate(taken):
        for side in one.norms:
            axis = Axis(group, side.block)
            members.append(Member(f"{names[side.module]}.weight", axis, fill=1.0))
            members.append(Member(f"{names[side.module]}.bias", axis))
    behind = tuple(
        (f"{names[module]}.weight", names[norm])
        for module, norm in every.behind.items()
        if module in columns and module._parameters.get("bias") is None
    )
    least, most = method.where.least, tuple(max(1, int(method.where.most * one.width)) for one in taken)
    levels = tuple(level_of(one) if "products" in method.needs else None for one in taken)
    return Space(tuple(one.name for one in taken), (least,) * len(taken), most, tuple(members), levels, behind)


def level_of(one: Found) -> float | None:
    """What a unit gives out whose sum is `OPEN`, where that is known and a bias of its reader can take it back."""
    layers = [side.module for side in (*one.makers, *one.readers)]
    if one.between is None or len(layers) != 2 or not all(isinstance(layer, nn.Linear) for layer in layers):
        return None
    bias = layers[1]._parameters.get("bias")
    if bias is None or not bias.requires_grad or one.norms:
        return None
    if any(isinstance(act, nn.Module) and any(True for _ in act.parameters()) for act in one.between):
        return None  # it changes with the training
    unit = torch.full((1, 1), OPEN, dtype=torch.float64)
    try:
        for act in one.between:
            unit = unit if isinstance(act, nn.Dropout) else act(unit)
        return float(unit)
    except Exception:  # code of the model, which may take no such tensor
        return None


def _refuse_without_products(space: Space, method: WidthMethod) -> None:
    """New units by their gradient need one linear layer with a bias on either side, and a known activation."""
    for group, name in enumerate(space.groups):
        if not simple(space, group) or space.levels[group] is None:
            raise ConfigError(
                f"{method.name} finds new units by gradient, between one plain nn.Linear with a bias and another, with "
                f"an activation that is known and no norm; {plain(name)} is not so: leave it out with "
                f"on(exclude=({plain(name)!r},)), or take methods.width()"
            )


def _parameter(module: nn.Module, name: str) -> Tensor:
    found = module._parameters[name]
    assert found is not None
    return found


def _refuse_unseen(taken: Sequence[Found], names: Mapping[nn.Module, str], seen: Mapping[nn.Module, int]) -> None:
    """FLOPs are those of the example's forward: of a layer that it does not reach they are not known."""
    for one in taken:
        for side in (*one.makers, *one.readers):
            if side.module not in seen:
                raise ConfigError(
                    f"{plain(names[side.module])} does not run on the example, so its FLOPs are not known; give one "
                    f"that reaches it, or leave it out: method.on(exclude=({plain(one.name)!r},), example=inputs)"
                )


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
        with apart(root):
            call(root, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found
