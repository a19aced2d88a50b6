"""Giving frozen linear layers their deltas: how many weights each, which, over which pools. Installs no hook."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from realloc.allocate.room import Room, allot
from realloc.choose_linear import Choice, Layer, choose_layers, freeze_others, notes_of, pool_dtype
from realloc.errors import ConfigError, plain
from realloc.kernels.dispatch import choose_compute, not_supported
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.method import Method
from realloc.observe.average import Averages
from realloc.observe.candidate_sums import sums_of
from realloc.plan import SiteLine, StartPlan
from realloc.pool.flat import FlatPool
from realloc.pool.found import put_on
from realloc.pool.holdings import Holdings
from realloc.prepare import place
from realloc.sites.delta import add_delta
from realloc.sites.grid import Grid

GroupKey = Callable[[str], Hashable]


@final
@dataclass(frozen=True, eq=False)
class DeltaStart:
    """Which places each layer starts with, int64 ascending, and the method that moves them."""

    choice: Choice
    grids: tuple[Grid, ...]
    places: tuple[Tensor, ...]
    rule: Method


def plan_deltas(root: nn.Module, method: DeltaMethod, seed: int) -> DeltaStart:
    """Choose layers and places. Changes nothing.

    Raises:
        ConfigError: no layer, a pattern without a match, a budget that does not fit, or one that must measure first.
    """
    choice = choose_layers(root, method.where, "deltas")
    grids = grids_of(choice.layers)
    budget = budget_of(method, grids)
    rule = method.rule_at(budget / sum(grid.units for grid in grids))
    if method.places:
        return DeltaStart(choice, grids, _given(method, choice, grids, budget), rule)
    if method.measures:
        raise ConfigError(
            f"{method.name} measures a few batches first: method = realloc.calibrate(model, batches, method), then "
            "prepare(model, method)"
        )
    rooms = [
        Room(layer.name, (grid.rows, grid.columns), least=0, most=grid.units, shape=tuple(layer.weight.shape))
        for layer, grid in zip(choice.layers, grids, strict=True)
    ]
    counts = allot(rule.start, rooms, budget, f"start of {method.name}", ConfigError)
    found = [
        place(layer.name, layer.weight.detach(), grid, count, rule, seed)
        for layer, grid, count in zip(choice.layers, grids, counts, strict=True)
    ]
    return DeltaStart(choice, grids, tuple(found), rule)


def grids_of(layers: Sequence[Layer]) -> tuple[Grid, ...]:
    """The grid of each layer's weight, of single weights."""
    return tuple(Grid(*layer.weight.shape) for layer in layers)


def budget_of(method: DeltaMethod, grids: Sequence[Grid]) -> int:
    """Parameters that the deltas hold, always.

    Raises:
        ConfigError: none, or more than the layers have.
    """
    room = sum(grid.units for grid in grids)
    budget = round((method.density or 0.0) * room) if method.budget is None else method.budget
    if not 1 <= budget <= room:
        raise ConfigError(
            f"{method.name} was asked for {method.asked}, that is {budget:,} of the {room:,} weights of "
            f"{len(grids)} layers; give 1 to {room:,}, or name other layers"
        )
    return budget


def _given(method: DeltaMethod, choice: Choice, grids: Sequence[Grid], budget: int) -> tuple[Tensor, ...]:
    found = []
    for layer, grid in zip(choice.layers, grids, strict=True):
        mine = method.places.get(layer.name, torch.empty(0, dtype=torch.int64))
        if mine.dtype != torch.int64 or mine.ndim != 1 or bool((mine.diff() <= 0).any()):
            raise ConfigError(f"places of {plain(layer.name)} are no ascending int64; take them from realloc.calibrate")
        if mine.numel() and not 0 <= int(mine[0]) <= int(mine[-1]) < grid.units:
            raise ConfigError(f"places of {plain(layer.name)} lie outside its {grid.height} x {grid.width} weights")
        found.append(mine)
    held = sum(mine.numel() for mine in found)
    strange = next((name for name in method.places if name not in {layer.name for layer in choice.layers}), None)
    if held != budget or strange is not None:
        raise ConfigError(
            f"{method.name} was calibrated for {sum(p.numel() for p in method.places.values()):,} weights"
            + ("" if strange is None else f", {plain(strange)} among them,")
            + f" and {held:,} of {budget:,} fit this model; calibrate it on this model, with the same layers and budget"
        )
    return tuple(found)


def describe_deltas(root: nn.Module, start: DeltaStart, method: DeltaMethod) -> StartPlan:
    """The table that `prepare` returns."""
    lines, notes = [], notes_of(root, start.choice, "deltas")
    for layer, grid, places in zip(start.choice.layers, start.grids, start.places, strict=True):
        weight, held = layer.weight, places.numel()
        scatters = choose_compute(weight.device, pool_dtype(weight), held / grid.units) == 1
        note = "; ".join(not_supported(weight.device, pool_dtype(weight))) if scatters else ""
        compute = "scatter" if scatters else "kernel"
        lines.append(SiteLine(layer.name, tuple(weight.shape), grid.units, held, "delta", compute, note))
    if len({_zone(layer, None) for layer in start.choice.layers}) > 1:
        notes.append("layers of several dtypes or devices: weights do not move between them")
    budget, room = sum(line.held for line in lines), sum(line.capacity for line in lines)
    where = method.where.layers, method.where.exclude
    return StartPlan(
        method.name, budget / room, budget, tuple(lines), start.choice.others, tuple(notes), method.asked, where
    )  # fmt: skip


def _zone(layer: Layer, group: GroupKey | None) -> Hashable:
    return pool_dtype(layer.weight), str(layer.weight.device), group(layer.name) if group else None


def build_deltas(root: nn.Module, start: DeltaStart, *, seed: int, group: GroupKey | None = None) -> Holdings:
    """Put a delta of zeros over each layer, and freeze the rest, in place."""
    zones: dict[Hashable, list[int]] = {}
    for i, layer in enumerate(start.choice.layers):
        zones.setdefault(_zone(layer, group), []).append(i)
    pools = []
    for number, members in enumerate(zones.values()):
        layers = [start.choice.layers[i] for i in members]
        device = layers[0].weight.device
        pool = FlatPool(root, number, [layer.name for layer in layers], [start.grids[i] for i in members], "delta")
        places = [start.places[i].to(device) for i in members]
        held = sum(mine.numel() for mine in places)
        zeros = torch.zeros(held, 1, dtype=pool_dtype(layers[0].weight), device=device)
        pool.register(zeros, ages=start.rule.young > 0)
        pool.write(places)
        for site, layer in zip(pool.sites, layers, strict=True):
            add_delta(layer.module, site)
        pools.append(pool)
    holdings = Holdings(root, tuple(pools), None, freeze_others(root, start.choice))
    holdings.open_book(seed, sum(mine.numel() for mine in start.places))
    put_on(holdings)
    Averages(holdings, start.rule.average)
    sums_of(holdings, start.rule.candidates)
    return holdings
