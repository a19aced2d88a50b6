"""Giving linear layers their ranks: how many each, over which pools, and what is frozen. Installs no hook."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from realloc.allocate.afford import level
from realloc.choose_linear import Choice, Layer, choose_layers, freeze_others, notes_of, pool_dtype
from realloc.errors import ConfigError, nearest, plain
from realloc.methods.rank_method import RankMethod
from realloc.observe.average import Averages
from realloc.plan import SiteLine, StartPlan
from realloc.pool.found import put_on
from realloc.pool.holdings import Holdings
from realloc.pool.ranks import RankPool, RankSeat, new_rows
from realloc.scores.singular import jump
from realloc.sites.rank import add_ranks, check_rank

GroupKey = Callable[[str], Hashable]


@final
@dataclass(frozen=True, eq=False)
class RankStart:
    """How many ranks each layer starts with, under which budget."""

    choice: Choice
    seats: tuple[RankSeat, ...]
    counts: tuple[int, ...]
    capacity: int  # slots of all pools: the most that is ever held
    budget: int  # parameters that the method was given; its curve multiplies them
    final: int  # parameters that may be held at the end


def plan_ranks(root: nn.Module, method: RankMethod) -> RankStart:
    """Choose layers and share the budget. Changes nothing.

    Raises:
        ConfigError: no layer, a pattern without a match, a budget below one rank or above what the caps allow, or a cap
            that leaves nothing to move.
    """
    if method.probe is not None:
        raise ConfigError(
            f"{method.name} measures a few batches first: method = realloc.calibrate(model, batches, method), then "
            "prepare(model, method)"
        )
    choice = choose_layers(root, method.where)
    seats, most = seats_of(method, choice.layers), max(method.share(0.0), method.share(1.0))
    if method.ranks:
        counts = _given(method, seats)
        _check_kept(method, choice.layers, counts)
        seats = [RankSeat(s.name, s.shape, max(1, n), s.scale) for s, n in zip(seats, counts, strict=True)]
        held = sum(s.cost * n for s, n in zip(seats, counts, strict=True))
        budget = max(held, method.budget or 0)
        return RankStart(choice, tuple(seats), counts, budget, budget, budget)
    budget = budget_of(method, seats)
    _check_budget(method, seats, budget)
    room = sum(seat.cap * seat.cost for seat in seats)
    capacity, start = min(room, round(budget * most)), min(room, round(budget * method.share(0.0)))
    final = min(room, round(budget * method.share(1.0)))
    if any(layer.adopted for layer in choice.layers):
        counts = tuple(layer.adopted.a.shape[0] if layer.adopted else 0 for layer in choice.layers)
        held = sum(s.cost * n for s, n in zip(seats, counts, strict=True))
        if held > capacity:
            raise ConfigError(
                f"the adapter holds {held:,} parameters, {method.name} may hold {capacity:,}; raise its rank or budget"
            )
        if method.want and not method.keep and final - held < min(s.cost for s in seats):
            raise ConfigError(
                f"the adapter holds {held:,} of the {final:,} parameters of {method.name}, which only adds ranks: "
                "nothing could move; raise its rank or budget, or take a method that cuts, such as adalora"
            )
        return RankStart(choice, tuple(seats), counts, capacity, budget, final)
    _check_cut(method, seats, start - final)
    return RankStart(choice, tuple(seats), _uniform(seats, start), capacity, budget, final)


def budget_of(method: RankMethod, seats: Sequence[RankSeat]) -> int:
    """Parameters that the method may hold at the end."""
    return method.budget or sum(min(method.rank or 0, *seat.shape) * seat.cost for seat in seats)


def seats_of(method: RankMethod, layers: Sequence[Layer]) -> list[RankSeat]:
    """The layers with the most ranks that each may hold; where no cap is given, as many as the budget needs.

    Raises:
        ConfigError: a rank that no layer has, or an adapter of more ranks than the cap.
    """
    shapes = [tuple(layer.weight.shape) for layer in layers]
    if method.rank is not None and not any(layer.adopted for layer in layers):
        check_rank(method.rank, {layer.name: shape for layer, shape in zip(layers, shapes, strict=True)})
    most = max(method.share(0.0), method.share(1.0))
    fair = method.rank or max(1, math.ceil((method.budget or 1) / sum(map(sum, shapes))))
    cap = method.cap or math.ceil(fair * max(most, 2.0 if method.want or method.probe else 1.0))
    needed = most * (method.budget or 0)
    while method.cap is None and cap < max(map(min, shapes)):
        if sum(min(cap, *shape) * sum(shape) for shape in shapes) >= needed:
            break
        cap += 1
    seats = []
    for layer, shape in zip(layers, shapes, strict=True):
        found = layer.adopted
        if found is not None and method.cap is not None and len(found.a) > method.cap:
            raise ConfigError(
                f"the adapter of {plain(layer.name)} has rank {len(found.a)}, and a layer may hold cap={method.cap}; "
                f"raise cap to {len(found.a)}, or give a plain model: merge_and_unload()"
            )
        most_here = min(cap, *shape) if found is None else max(found.a.shape[0], min(cap, *shape))
        scale = method.scale if found is None else found.scale
        seats.append(RankSeat(layer.name, (shape[0], shape[1]), most_here, scale))
    return seats


def _uniform(seats: Sequence[RankSeat], budget: int) -> tuple[int, ...]:
    return level([1] * len(seats), [s.cost for s in seats], budget, [0] * len(seats), [s.cap for s in seats])


def _given(method: RankMethod, seats: Sequence[RankSeat]) -> tuple[int, ...]:
    asked, names = dict(method.ranks), [seat.name.removesuffix(".weight") for seat in seats]
    strange = next((name for name in asked if name not in names), None)
    if strange is not None:
        raise ConfigError(f"{plain(strange)!r} is no layer that may hold ranks{nearest(strange, names)}")
    for seat, name in zip(seats, names, strict=True):
        if asked.get(name, 0) > min(seat.shape):
            raise ConfigError(f"{plain(name)} is {seat.shape} and asked for {asked[name]} ranks, more than it has")
    return tuple(asked.get(name, 0) for name in names)


def _check_kept(method: RankMethod, layers: Sequence[Layer], counts: Sequence[int]) -> None:
    """Refuse to set a number of ranks where an adapter has another: what it learnt would be lost."""
    for layer, count in zip(layers, counts, strict=True):
        if layer.adopted is not None and len(layer.adopted.a) != count:
            raise ConfigError(
                f"{method.name} sets {plain(layer.name)} to {count} ranks, and its adapter has {len(layer.adopted.a)}, "
                "which would be lost; give it as many, take a method that moves them, or a plain model: "
                "merge_and_unload()"
            )


def _check_budget(method: RankMethod, seats: Sequence[RankSeat], budget: int) -> None:
    cheapest = min(seats, key=lambda seat: seat.cost)
    least = min(budget, round(budget * method.share(1.0)))
    if least < cheapest.cost:
        raise ConfigError(
            f"budget is {least:,} parameters, below one rank: the cheapest, of {plain(cheapest.name)}, costs "
            f"{cheapest.cost:,}; give at least that, or {sum(s.cost for s in seats):,} for a rank in every layer"
        )
    room = sum(seat.cap * seat.cost for seat in seats)
    if budget > room:
        raise ConfigError(
            f"{budget:,} parameters do not fit: {len(seats)} layers with at most {max(s.cap for s in seats)} ranks "
            f"each hold {room:,}; raise cap, name more layers, or lower the budget"
        )


def _check_cut(method: RankMethod, seats: Sequence[RankSeat], surplus: int) -> None:
    """Refuse a cap that brings the start of a method that only cuts down to what it is to keep."""
    only_cuts = method.want is None and method.share(1.0) < method.share(0.0)
    if method.cap and only_cuts and surplus < min(s.cost for s in seats) and any(s.cap < min(s.shape) for s in seats):
        raise ConfigError(
            f"cap={method.cap} leaves {method.name} nothing to cut: with at most {method.cap} ranks a layer it starts "
            "with what is kept at the end; raise cap, lower rank or budget, or take lora, which never moves"
        )


def describe_ranks(root: nn.Module, start: RankStart, method: RankMethod) -> StartPlan:
    """The table that `prepare` returns."""
    jumps = {name: jump(method.rows[name], b, method.scale) for name, b in method.rows_b.items() if name in method.rows}
    lines = [
        SiteLine(s.name, s.shape, s.cap * s.cost, n * s.cost, "rank", "dense", _words(n, s.cap, jumps.get(s.name)))
        for s, n in zip(start.seats, start.counts, strict=True)
    ]
    held = sum(line.held for line in lines)
    notes = notes_of(root, start.choice, "ranks")
    if jumps:
        notes.append(
            f"the start is not the model as it was: {len(jumps)} weights change by {math.hypot(*jumps.values()):.3g} "
            "in all (Frobenius norm); detach() keeps that"
        )
    asked = round(start.budget * max(method.share(0.0), method.share(1.0)))
    if method.cap and start.capacity < asked:
        notes.append(
            f"cap {method.cap} leaves room for {start.capacity:,} of the {asked:,} parameters of {method.name}"
        )
    if start.capacity > held:
        notes.append(f"{start.capacity - held:,} parameters are parked at the start")
    if start.final < start.capacity:
        notes.append(f"{start.final:,} parameters may be held at the end; handle.compact() gives the rest back")
    if len({_zone(layer, None) for layer in start.choice.layers}) > 1:
        notes.append("layers of several dtypes or devices: ranks do not move between them")
    whole = sum(s.shape[0] * s.shape[1] for s in start.seats)
    where = method.where.layers, method.where.exclude
    return StartPlan(
        method.name, start.final / whole, start.capacity, tuple(lines), start.choice.others, tuple(notes),
        method.asked, where,
    )  # fmt: skip


def _words(count: int, cap: int, moved: float | None) -> str:
    return f"rank {count} of at most {cap}" + ("" if moved is None else f", jump {moved:.3g}")


def _zone(layer: Layer, group: GroupKey | None) -> Hashable:
    weight = layer.weight
    return pool_dtype(weight), str(weight.device), group(layer.name) if group else None


def build_ranks(
    root: nn.Module, start: RankStart, method: RankMethod, *, seed: int, group: GroupKey | None = None
) -> Holdings:
    """Put the ranks beside their layers and freeze the rest, in place."""
    zones: dict[Hashable, list[int]] = {}
    for i, layer in enumerate(start.choice.layers):
        zones.setdefault(_zone(layer, group), []).append(i)
    lengths, shares = _zones(start, [*zones.values()], method)
    pools = []
    for number, (key, members) in enumerate(zones.items()):
        assert isinstance(key, tuple)
        seats, counts, length = [start.seats[i] for i in members], shares[number], lengths[number]
        pool = RankPool(root, number, seats)
        device = start.choice.layers[members[0]].weight.device
        layers = [start.choice.layers[i] for i in members]
        pool.register(
            _values(seats, counts, length, seed, layers, method).to(device, key[0]), means=method.betas is not None
        )
        pool.budget = length if start.budget == start.capacity else start.budget * length // start.capacity
        pool.write([torch.arange(n, device=device) for n in counts])
        for site, i in zip(pool.sites, members, strict=True):
            layer = start.choice.layers[i]
            add_ranks(layer.module, site)
            if layer.adopted is not None:
                layer.adopted.unwrap()
        pools.append(pool)
    holdings = Holdings(root, tuple(pools), None, freeze_others(root, start.choice))
    holdings.open_book(seed, start.capacity)
    put_on(holdings)
    Averages(holdings, None)
    return holdings


def _zones(
    start: RankStart, zones: Sequence[Sequence[int]], method: RankMethod
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Slots of each pool, and the ranks its layers start with. The first pool takes what pays for no rank."""
    if len(zones) == 1:
        return [start.capacity], [start.counts]
    costs = [seat.cost for seat in start.seats]
    held = sum(n * cost for n, cost in zip(start.counts, costs, strict=True))
    given = any(layer.adopted for layer in start.choice.layers) or method.share(0.0) >= method.share(1.0)
    full = start.counts if given else _uniform(start.seats, start.capacity)
    lengths = [sum(costs[i] * full[i] for i in members) for members in zones]
    shares = []
    for members, length in zip(zones, lengths, strict=True):
        seats = [start.seats[i] for i in members]
        mine = tuple(full[i] for i in members)
        shares.append(mine if full == start.counts else _uniform(seats, length * held // start.capacity))
    lengths[0] += start.capacity - sum(lengths)
    return lengths, shares


def _values(
    seats: Sequence[RankSeat], counts: Sequence[int], length: int, seed: int, layers: Sequence[Layer],
    method: RankMethod,
) -> Tensor:  # fmt: skip
    """Start values ``(n, 1)``: of a peft model; else A and B as given, or A as peft starts it and B zero. Parked: 0."""
    parts: list[Tensor] = []
    for seat, count, layer in zip(seats, counts, layers, strict=True):
        found, fan_out = layer.adopted, seat.shape[0]
        a, b = (method.rows.get(seat.name), method.rows_b.get(seat.name)) if found is None else (found.a, found.b)
        if a is None or len(a) != count:
            a, b = new_rows(count, seat.shape[1], seed, seat.name, 0), None
        b = torch.zeros(count, fan_out) if b is None else b
        parts += [a.reshape(-1).cpu().double(), b.reshape(-1).cpu().double()]
    held = torch.cat(parts)
    return torch.cat([held, held.new_zeros(length - held.numel())]).unsqueeze(1)
