"""Choosing the layers, giving each its units, and building the pools. Installs no hook."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from realloc.allocate.room import Room, allot
from realloc.choose import Chosen, choose
from realloc.errors import ConfigError
from realloc.kernels.dispatch import choose_compute, not_supported
from realloc.kernels.finite import all_finite
from realloc.kernels.search import Lot, draw
from realloc.methods.method import Method
from realloc.observe.average import Averages
from realloc.observe.candidate_sums import sums_of
from realloc.observe.impressions import Impressions
from realloc.plan import SiteLine, StartPlan
from realloc.pool.flat import FlatPool
from realloc.pool.found import free_prefix, put_on
from realloc.pool.groups import Part
from realloc.pool.holdings import Holdings
from realloc.pool.masked import MaskedPool
from realloc.rng import stream
from realloc.scores.random import random
from realloc.scores.seen import Seen
from realloc.select.top_k import top_k
from realloc.sites.grid import Grid
from realloc.sites.packed import pack

GroupKey = Callable[[str], Hashable]


@final
@dataclass(frozen=True, eq=False)
class Start:
    """Which units each chosen weight holds at the start."""

    chosen: tuple[Chosen, ...]
    places: tuple[Tensor, ...]
    dense: tuple[tuple[str, str], ...]


def plan_start(root: nn.Module, method: Method, seed: int) -> Start:
    """Choose layers and start places. Changes nothing.

    Raises:
        ConfigError: no layer, a pattern without a match, fewer weights than layers, values that are not finite.
    """
    chosen, dense = choose(root, method.where)
    rooms = [
        Room(c.name, (c.grid.rows, c.grid.columns), least=1, most=c.grid.units, shape=tuple(c.parameter.shape))
        for c in chosen
    ]
    units = sum(room.most for room in rooms)
    budget = round(method.start_density * units)
    final = round(method.density * units)
    if min(budget, final) < len(rooms):
        need = len(rooms) / units
        raise ConfigError(
            f"density {method.density} gives {min(budget, final)} units to {len(rooms)} layers, fewer than one each; "
            f"use density >= {math.ceil(need * 1e6) / 1e6}, or fewer layers with method.on(...)"
        )
    counts = allot(method.start, rooms, budget, f"start of {method.name}", ConfigError)
    found = zip(chosen, counts, strict=True)
    places = tuple(place(c.name, c.parameter.detach(), c.grid, n, method, seed) for c, n in found)
    return Start(tuple(chosen), places, tuple(dense))


def place(name: str, weight: Tensor, grid: Grid, count: int, method: Method, seed: int) -> Tensor:
    """The places that a weight starts with, int64 ``[count]``, ascending.

    Raises:
        ConfigError: the weight has NaN or Inf.
    """
    if not all_finite(weight):
        raise ConfigError(f"{name} has NaN or Inf among its weights; initialise or load it before attach")
    if count == grid.units:
        return torch.arange(grid.units)
    generator = stream(seed, "start", name)
    if method.place is random:  # the same law as ranking random scores, without one for every unit
        return draw([Lot(grid.units, count, generator, torch.empty(0, dtype=torch.int64))])[0]
    values = grid.fold(weight.reshape(grid.height, grid.width)) if "values" in method.place.needs else None
    seen = Seen(
        torch.arange(grid.units), (grid.rows, grid.columns), torch.empty(0, dtype=torch.int64), generator, values
    )
    return top_k(method.place(seen), count)


def describe(start: Start, method: Method) -> StartPlan:
    """The table that `prepare` returns."""
    lines, notes = [], []
    for chosen, places in zip(start.chosen, start.places, strict=True):
        parameter, size = chosen.parameter, chosen.grid.size
        reasons = not_supported(parameter.device, parameter.dtype)
        compute, note = "kernel", ""
        if chosen.storage == "masked":
            compute, note = "dense", "no speed, no memory saved"
        elif chosen.grid.whole_columns:
            compute = "gather"
        elif reasons or _scatters(chosen, places):
            compute, note = "scatter", "; ".join(reasons) or "computes densely: at this density the kernel is slower"
        if chosen.grid.whole_columns:
            held_now = f"{places.numel():,} of {chosen.grid.columns:,} input columns"
            note = "; ".join(filter(None, [held_now, note]))
        elif size > 1:
            note = "; ".join(filter(None, [f"blocks of {chosen.grid.r} x {chosen.grid.c}", note]))
        shape, held = tuple(parameter.shape), places.numel() * size
        lines.append(SiteLine(chosen.name, shape, parameter.numel(), held, chosen.storage, compute, note))
    if method.average is not None:
        dense = sum(c.parameter.numel() * c.parameter.element_size() for c in start.chosen)
        notes.append(
            f"{method.name} keeps a dense running mean of the gradient: {dense:,} bytes, and one dense matrix "
            "product for each site and step"
        )
    if method.impressions:
        notes.append(f"{method.name} sums the gradient of the held units over each interval: one number a weight")
    keys = {_zone(c, None) for c in start.chosen}
    if len(keys) > 1:
        notes.append(f"{len(keys)} separate pools (by storage, unit size, dtype, device): no unit moves between them")
    budget = sum(line.held for line in lines)
    where = method.where.layers, method.where.exclude
    return StartPlan(method.name, method.density, budget, tuple(lines), start.dense, tuple(notes), method.asked, where)


def _scatters(chosen: Chosen, places: Tensor) -> bool:
    share = places.numel() / max(1, chosen.grid.units)
    block = (chosen.grid.r, chosen.grid.c)
    return choose_compute(chosen.parameter.device, chosen.parameter.dtype, share, block) == 1


def _zone(chosen: Chosen, group: GroupKey | None) -> Hashable:
    if chosen.storage == "masked":
        return "masked"
    parameter = chosen.parameter
    return chosen.grid.size, parameter.dtype, str(parameter.device), group(chosen.name) if group else None


def build(
    root: nn.Module, start: Start, method: Method, *, seed: int, group: GroupKey | None = None
) -> tuple[Holdings, list[list[Part]]]:
    """Turn the chosen layers into sites over pools, in place. Returns what each pool took from where."""
    zones: dict[Hashable, list[int]] = {}
    for i, chosen in enumerate(start.chosen):
        zones.setdefault(_zone(chosen, group), []).append(i)
    prefix = free_prefix(root)
    flats: list[FlatPool] = []
    parts: list[list[Part]] = []
    masked: MaskedPool | None = None
    for key, members in zones.items():
        rows = [start.chosen[i] for i in members]
        places = [start.places[i] for i in members]
        if key == "masked":
            masked = _build_masked(root, prefix, rows, places, method)
        else:
            flat, taken = _build_flat(root, prefix, len(flats), rows, places, method)
            flats.append(flat)
            parts.append(taken)
    holdings = Holdings(root, tuple(flats), masked, prefix=prefix)
    budget = sum(p.numel() * c.grid.size for c, p in zip(start.chosen, start.places, strict=True))
    holdings.open_book(seed, budget)
    put_on(holdings)
    Averages(holdings, method.average)  # its buffers, so that a prepared model loads what an attached one saved
    sums_of(holdings, method.candidates)
    Impressions(holdings, method.impressions)
    return holdings, parts


@torch.no_grad()
def _build_flat(
    root: nn.Module, prefix: str, number: int, rows: Sequence[Chosen], places: Sequence[Tensor], method: Method
) -> tuple[FlatPool, list[Part]]:
    pool = FlatPool(root, number, [c.name for c in rows], [c.grid for c in rows], prefix=prefix)
    values, parts, first = [], [], 0
    for chosen, held in zip(rows, places, strict=True):
        held = held.to(chosen.parameter.device)
        elements = chosen.grid.elements(held).flatten()
        taken = chosen.parameter.detach().reshape(-1)[elements]
        values.append(taken * _widen(chosen, held, method))
        parts.append(Part(chosen.name, chosen.parameter, elements, first, tuple(chosen.parameter.shape)))
        first += elements.numel()
    pool.register(torch.cat(values).unsqueeze(1), ages=method.young > 0 or method.impressions)
    pool.write([p.to(pool.parameter.device) for p in places])
    for site, chosen in zip(pool.sites, rows, strict=True):
        for module, _ in chosen.holders:
            assert isinstance(module, nn.Linear)
            pack(module, site)
    return pool, parts


@torch.no_grad()
def _build_masked(
    root: nn.Module, prefix: str, rows: Sequence[Chosen], places: Sequence[Tensor], method: Method
) -> MaskedPool:
    capacity, holders = sum(p.numel() for p in places), [c.holders[0] for c in rows]
    pool = MaskedPool(root, [c.name for c in rows], [c.grid for c in rows], holders, capacity, prefix)
    pool.register(ages=method.young > 0 or method.impressions)
    pool.write([p.to(c.parameter.device) for p, c in zip(places, rows, strict=True)])
    pool.clear_outside()
    for site, chosen, held in zip(pool.sites, rows, places, strict=True):
        pool.widen(site.index, _widen(chosen, held, method))
    return pool


def _widen(chosen: Chosen, held: Tensor, method: Method) -> float:
    if not method.where.rescale or not held.numel():
        return 1.0
    return math.sqrt(chosen.grid.units / held.numel())
