"""Binding a model's pools to an optimizer: groups changed in place, state carried over, foreign state refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from realloc.choose_linear import Choice
from realloc.errors import ConfigError, plain
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.method import Method
from realloc.methods.rank_method import RankMethod
from realloc.methods.width_method import WidthMethod
from realloc.plan import StartPlan
from realloc.pool.groups import carry_in, group_of, replace
from realloc.pool.holdings import Holdings
from realloc.pool.probe import MASKED, fresh_state
from realloc.pool.state import reset_masked
from realloc.prepare import GroupKey, Start, build, describe, plan_start
from realloc.prepare_deltas import build_deltas, describe_deltas, plan_deltas
from realloc.prepare_ranks import build_ranks, describe_ranks, plan_ranks
from realloc.prepare_widths import build_widths, describe_widths, plan_widths

ELEMENTWISE = "Use an elementwise optimizer such as AdamW or SGD"


@final
@dataclass(frozen=True, eq=False)
class Bound:
    """A model prepared under an optimizer."""

    table: StartPlan
    holdings: Holdings
    fresh: dict[nn.Parameter, dict[str, float]]  # what a fresh optimizer writes, by parameter and key
    old: dict[str, weakref.ref[nn.Parameter]]  # the dense weights that went into pools
    order: list[Tensor | str]  # the optimizer's parameters before; a packed weight by its name


def prepare_under(root: nn.Module, optimizer: torch.optim.Optimizer, method: Method, seed: int) -> Bound:
    """Prepare under an optimizer that has the dense weights: its groups change in place, its state is carried."""
    start = plan_start(root, method, seed)
    group_index = _groups_of({c.name: c.parameter for c in start.chosen}, optimizer)
    probes = {}
    for chosen in start.chosen:
        key = (group_index[chosen.name], chosen.storage, chosen.parameter.dtype)
        if chosen.storage == "packed" and key not in probes:
            probes[key] = fresh_state(optimizer, optimizer.param_groups[key[0]], chosen.parameter)
    table = describe(start, method)
    packed = {id(c.parameter): c.name for c in start.chosen if c.storage == "packed"}
    order = [packed.get(id(p), p) for group in optimizer.param_groups for p in group["params"]]
    holdings, parts = build(root, start, method, seed=seed, group=group_index.__getitem__)
    fresh: dict[nn.Parameter, dict[str, float]] = {}
    for pool, taken in zip(holdings.flats, parts, strict=True):
        mine = probes[(group_index[taken[0].name], "packed", pool.parameter.dtype)]
        carry_in(optimizer, taken, pool.parameter, mine)
        replace(optimizer, [(p.name, p.parameter) for p in taken], [(pool.key, pool.parameter)])
        fresh[pool.parameter] = mine
    for site in holdings.masked.sites if holdings.masked is not None else ():
        fresh[site.parameter] = _fresh_masked(optimizer, site.parameter)
        outside = (~site.mask()).flatten().nonzero().flatten()
        reset_masked(optimizer, site.parameter, outside[:0], outside, dict(fresh[site.parameter]))
    return Bound(table, holdings, fresh, packed_weights(start), order)


def prepare_wide_under(root: nn.Module, optimizer: torch.optim.Optimizer, method: WidthMethod, seed: int) -> Bound:
    """Prepare widths under an optimizer that has the parameters whose shapes follow them."""
    start = plan_widths(root, method)
    named = {member.name: root.get_parameter(member.name) for member in start.chosen.space.members}
    group_index = _groups_of(named, optimizer)
    probes = {}
    for name, parameter in named.items():
        key = group_index[name], parameter.dtype
        if key not in probes:
            probes[key] = fresh_state(optimizer, optimizer.param_groups[key[0]], parameter, ELEMENTWISE)
    moved = {id(parameter): name for name, parameter in named.items()}
    order = [moved.get(id(p), p) for group in optimizer.param_groups for p in group["params"]]
    old = {name: weakref.ref(parameter) for name, parameter in named.items()}
    holdings, parts = build_widths(root, start, method, seed=seed, group=group_index.__getitem__)
    fresh = {}
    for pool, taken in zip(holdings.flats, parts, strict=True):
        mine = probes[group_index[taken[0].name], pool.parameter.dtype]
        carry_in(optimizer, taken, pool.parameter, mine)
        replace(optimizer, [(p.name, p.parameter) for p in taken], [(pool.key, pool.parameter)])
        fresh[pool.parameter] = mine
    return Bound(describe_widths(start, method), holdings, fresh, old, order)


def prepare_beside_under(
    root: nn.Module, optimizer: torch.optim.Optimizer, method: RankMethod | DeltaMethod, seed: int
) -> Bound:
    """Prepare under an optimizer that has the weights that ranks or deltas stand beside.

    The pool comes before the first of them. The weights stay where they are in the groups; frozen, they get no
    gradient, so the optimizer skips them.
    """
    started = begin_beside(root, method, seed)
    choice = started.choice
    group_index = _groups_of({layer.name: layer.parameter for layer in choice.layers}, optimizer)
    beside = {name: root.get_parameter(name) for name in choice.trained}
    _check_beside(beside, optimizer, "rank" if isinstance(method, RankMethod) else "delta")
    probes = {
        index: fresh_state(optimizer, optimizer.param_groups[index], choice.layers[0].parameter)
        for index in set(group_index.values())
    }
    order: list[Tensor | str] = [p for group in optimizer.param_groups for p in group["params"]]
    holdings = started.build(group_index.__getitem__)
    fresh = {}
    for pool in holdings.flats:
        first = pool.sites[0].name
        weight = next(layer.parameter for layer in choice.layers if layer.name == first)
        replace(optimizer, [(first, weight)], [(pool.key, pool.parameter), (first, weight)])
        fresh[pool.parameter] = probes[group_index[first]]
    return Bound(started.table, holdings, fresh, {}, order)


@final
@dataclass(frozen=True, eq=False)
class Beginning:
    """What is about to be put beside frozen weights. Nothing has changed yet."""

    choice: Choice
    table: StartPlan
    build: Callable[[GroupKey | None], Holdings]


def begin_beside(root: nn.Module, method: RankMethod | DeltaMethod, seed: int) -> Beginning:
    """Plan ranks or deltas."""
    if isinstance(method, RankMethod):
        ranks = plan_ranks(root, method)
        table = describe_ranks(root, ranks, method)
        return Beginning(ranks.choice, table, lambda group: build_ranks(root, ranks, method, seed=seed, group=group))
    deltas = plan_deltas(root, method, seed)
    table = describe_deltas(root, deltas, method)
    return Beginning(deltas.choice, table, lambda group: build_deltas(root, deltas, seed=seed, group=group))


def _check_beside(weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, storage: str) -> None:
    """Refuse an optimizer without what trains in full beside: it would stay as it is, silently."""
    what = {"rank": "ranks"}.get(storage, "deltas")
    for name, parameter in weights.items():
        if parameter.requires_grad and group_of(optimizer, parameter) is None:
            raise ConfigError(
                f"the optimizer does not hold {plain(name)!r}, which trains beside the {what}; make it from this "
                "model's parameters, freeze that one, or say method.on(..., train=())"
            )


def packed_weights(start: Start) -> dict[str, weakref.ref[nn.Parameter]]:
    """The dense weights that go into pools; whoever still holds one later holds a weight that nothing trains."""
    return {c.name: weakref.ref(c.parameter) for c in start.chosen if c.storage == "packed"}


def _groups_of(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, int]:
    found = {name: group_of(optimizer, weight) for name, weight in weights.items()}
    missing = [name for name, index in found.items() if index is None]
    if missing:
        raise ConfigError(
            f"the optimizer does not hold {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
            + "; make the optimizer from this model's parameters, or freeze or exclude the layer"
        )  # fmt: skip
    return {name: index for name, index in found.items() if index is not None}


def fresh_of(optimizer: torch.optim.Optimizer, holdings: Holdings) -> dict[nn.Parameter, dict[str, float]]:
    """What a fresh optimizer writes for each managed parameter of a prepared model.

    Raises:
        ConfigError: the optimizer lacks one of them, or what trains beside ranks, or is not elementwise.
    """
    fresh = {}
    for pool in holdings.flats:
        index = group_of(optimizer, pool.parameter)
        if index is None:
            raise ConfigError(
                "the optimizer does not hold the pool of this prepared model; "
                "make it from model.parameters() after prepare()"
            )
        remedy = MASKED if pool.storage == "packed" else ELEMENTWISE
        fresh[pool.parameter] = fresh_state(optimizer, optimizer.param_groups[index], pool.parameter, remedy)
    beside = next((pool.storage for pool in holdings.flats if pool.storage in ("rank", "delta")), None)
    if beside is not None:
        _check_beside(dict(holdings.owner.named_parameters()), optimizer, beside)
    for site in holdings.masked.sites if holdings.masked is not None else ():
        if group_of(optimizer, site.parameter) is None:
            raise ConfigError(f"the optimizer does not hold {site.name!r}; make it from this model's parameters")
        fresh[site.parameter] = _fresh_masked(optimizer, site.parameter)
    return fresh


def _fresh_masked(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, float]:
    """Masked storage takes any optimizer: where state is not slotwise there is none to move."""
    index = group_of(optimizer, parameter)
    assert index is not None
    try:
        return fresh_state(optimizer, optimizer.param_groups[index], parameter)
    except ConfigError:
        return {}


def check_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], fresh: Mapping[nn.Parameter, dict[str, float]]
) -> None:
    """Refuse state of another shape: torch maps by position and checks nothing; a fused step corrupts the heap.

    Raises:
        ConfigError: nothing has been copied yet.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    if len(numbers) != len(parameters):
        raise ConfigError(
            f"the optimizer state is for {len(numbers)} parameters, this optimizer has {len(parameters)}; "
            "load a state saved while attached with the same method, or load a plain one before attach()"
        )
    slotwise = {key for starts in fresh.values() for key in starts}
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in state["state"].get(number, {}).items():
            if torch.is_tensor(value) and key in slotwise and value.shape != parameter.shape:
                raise ConfigError(
                    f"optimizer state {key!r} of parameter {number} has shape {tuple(value.shape)}, the parameter "
                    f"{tuple(parameter.shape)}; it was saved with another model, density or layers"
                )
