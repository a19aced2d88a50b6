"""Making a move. The only place besides `pool/` that writes parameters or optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, final

import torch
from torch import Tensor, nn

from realloc.kernels.gather import gather_slots, to_slots
from realloc.ledger import Entry
from realloc.plan import Change, Plan
from realloc.pool.flat import FlatPool
from realloc.pool.holdings import Holdings, rewriting
from realloc.pool.masked import MaskedPool
from realloc.pool.pairing import Pairing, Words
from realloc.pool.ranks import RankPool, new_rows
from realloc.pool.state import (
    Moments,
    Newcomers,
    gather_pool,
    put,
    reset_masked,
    slotwise,
    spread,
    starts_of,
    weight_so_far,
)
from realloc.pool.width_writes import write as write_widths
from realloc.pool.widths import WidePool

WORDS: Final = Words("realloc_stamp", "the model's parameters", "different placements")


@final
@dataclass(frozen=True, eq=False)
class Target:
    """Everything a move changes: the model's holdings, the optimizer over them, and copies that follow."""

    holdings: Holdings
    optimizer: torch.optim.Optimizer
    fresh: Mapping[nn.Parameter, dict[str, float]]
    moments: Moments = "zero"
    followers: list[Holdings] = field(default_factory=list)

    @cached_property
    def pairing(self) -> Pairing:
        """Whether model and optimizer belong together."""
        trained = [(pool.owner, pool.key, pool.parameter) for pool in self.holdings.flats]
        masked = () if self.holdings.masked is None else self.holdings.masked.sites
        trained += [(*site.holder, site.parameter) for site in masked]
        words = replace(WORDS, mark=f"{self.holdings.prefix}stamp")
        return Pairing(self.optimizer, trained, self.holdings.stamp, words)


@torch.no_grad()
def apply(plan: Plan, entries: Mapping[str, Entry], target: Target) -> None:
    """Apply a plan. Values and state move by one gather for each pool.

    Args:
        plan: what is released and acquired.
        entries: what the ledger made of it, for every site.
        target: what changes.
    """
    changes = {c.site: c for c in plan.changes if c.moves_anything}
    holdings = target.holdings
    with rewriting(holdings, *target.followers):
        if holdings.wide:
            _move_wide(holdings.wide, plan, entries, target)
        for number, flat in enumerate(holdings.flats):
            if any(site.name in changes for site in flat.sites):
                copies = [f.flats[number] for f in target.followers]
                if isinstance(flat, RankPool):
                    ranks = [copy for copy in copies if isinstance(copy, RankPool)]
                    _move_ranks(flat, changes, entries, target, ranks, plan.step)
                elif isinstance(flat, FlatPool):
                    followers = [copy for copy in copies if isinstance(copy, FlatPool)]
                    _move_flat(flat, changes, entries, target, followers, plan.step)
        if holdings.masked is not None:
            _move_masked(holdings.masked, changes, entries, target, plan.step)
            for follower in target.followers:
                if follower.masked is not None:
                    _follow_masked(follower.masked, holdings.masked, changes)
        holdings.book.add("moves")
        holdings.book.add("units_moved", plan.units_moved)
        for follower in target.followers:
            follower.book.tensor.copy_(holdings.book.tensor)
    target.pairing.write()


def _move_flat(
    pool: FlatPool,
    changes: Mapping[str, Change],
    entries: Mapping[str, Entry],
    target: Target,
    followers: Sequence[FlatPool],
    step: int,
) -> None:
    mine = [entries[site.name] for site in pool.sites]
    new = [entry.places for entry in mine]
    idle = pool.capacity - sum(places.numel() for places in new)
    parked = new[0].new_full((idle,), -1)
    units = torch.cat([*(entry.source for entry in mine), parked])
    source = to_slots(units, pool.unit_size)
    parameter = pool.parameter
    named = [changes.get(site.name) for site in pool.sites]
    newcomers = _newcomers(pool, named, mine, idle) if target.moments != "zero" else []
    state, weight = slotwise(target.optimizer, parameter), weight_so_far(target.optimizer, parameter)
    starts = starts_of(target.moments, state, target.fresh[parameter], newcomers, weight)
    gather_pool(target.optimizer, parameter, source, starts)
    born = pool.born
    if born is not None:
        gather_slots([(born, step)], units)
    pool.write(new)
    for follower in followers:
        gather_slots([(follower.parameter.detach(), 0.0)], source)
        if follower.born is not None:
            gather_slots([(follower.born, step)], units)
        follower.write(new)


def _newcomers(
    pool: FlatPool, changes: Sequence[Change | None], entries: Sequence[Entry], idle: int
) -> list[Newcomers]:
    """The slots of every site after the move, in pool order, then the ``idle`` units that are parked."""
    found, size = [], pool.unit_size
    for index, (change, entry) in enumerate(zip(changes, entries, strict=True)):
        first, last = (b * size for b in pool.bounds(index))
        gradient = None if change is None else change.gradient
        new = None if gradient is None else (to_slots(entry.source, size) < 0).nonzero().flatten()
        found.append(Newcomers(_some(first, last), entry.places.numel() * size, new, gradient))
    return [*found, Newcomers(torch.empty(0, dtype=torch.int64), idle * size)]


def _move_ranks(
    pool: RankPool,
    changes: Mapping[str, Change],
    entries: Mapping[str, Entry],
    target: Target,
    followers: Sequence[RankPool],
    step: int,
) -> None:
    """Move ranks. A new one starts with a random A and a zero B, and with the moments of a fresh optimizer."""
    parameter, seed = pool.parameter, target.holdings.book.read("seed")
    moves, starts, first = [], [], 0  # first: number of the site's first rank, counted over the pool, before the move
    for site in pool.sites:
        entry, change = entries[site.name], changes.get(site.name)
        old = torch.where(entry.source < 0, -1, entry.source - first)
        first += site.rank
        fan_out, fan_in = site.shape
        a, b = torch.zeros(old.numel(), fan_in), torch.zeros(old.numel(), fan_out)
        if change is not None and change.values is not None:
            old = torch.full_like(old, -1)
            a, b = change.values[:, :fan_in], change.values[:, fan_in:]
        elif bool((old < 0).any()):
            new = (old < 0).cpu()
            a[new] = new_rows(int(new.sum()), fan_in, seed, site.name, step)
        moves.append(old)
        starts += [a.reshape(-1).to(parameter), b.reshape(-1).to(parameter)]
    source = pool.source(moves)
    values = torch.cat([*starts, parameter.new_zeros(pool.capacity - sum(part.numel() for part in starts))]).detach()
    gather_pool(target.optimizer, parameter, source, dict(target.fresh[parameter]), values)
    pool.follow(source)
    places = [entries[site.name].places for site in pool.sites]
    pool.write(places)
    for follower in followers:
        gather_slots([(follower.parameter.detach(), values)], source)
        follower.follow(source)
        follower.write(places)


def _move_wide(pools: Sequence[WidePool], plan: Plan, entries: Mapping[str, Entry], target: Target) -> None:
    """Move units between widths: every parameter of each follows, in all pools, then what the plan writes."""
    before, groups = pools[0].widths, pools[0].space.groups
    units = [entries[name].source for name in groups]
    after = [entries[name].places.numel() for name in groups]
    for pool in pools:
        source, values = pool.source(units, before), pool.fills(after)
        parameter = pool.parameter
        state, weight = slotwise(target.optimizer, parameter), weight_so_far(target.optimizer, parameter)
        slots = [site.member.parameters(after) for site in pool.sites]
        held = [_some(*pool.bounds(site.index)) for site in pool.sites]
        newcomers = [Newcomers(mine, count) for mine, count in zip(held, slots, strict=True)]
        idle = pool.capacity - sum(slots)
        newcomers.append(Newcomers(torch.empty(0, dtype=torch.int64), idle))
        starts = starts_of(target.moments, state, dict(target.fresh[parameter]), newcomers, weight)
        gather_pool(target.optimizer, parameter, source, starts, values)
        copies = [follower.flats[pool.number] for follower in target.followers]
        for copy in (one for one in copies if isinstance(one, WidePool)):
            gather_slots([(copy.parameter.detach(), values)], source)
            copy.follow(source, units)
            copy.write(after)
        pool.follow(source, units)
        pool.write(after)
        pool.come(units, plan.step)
    write_widths(target.holdings.owner, pools, plan.writes, units)
    for follower in target.followers:
        write_widths(follower.owner, follower.wide, plan.writes, units)


def _some(first: int, last: int) -> Tensor:
    """Slots of a site, enough for a median."""
    return first + spread(last - first)


def _move_masked(
    pool: MaskedPool, changes: Mapping[str, Change], entries: Mapping[str, Entry], target: Target, step: int
) -> None:
    for site in pool.sites:
        change, held = changes.get(site.name), site.places()
        if change is None:
            continue
        parameter = site.parameter
        gone = site.grid.elements(change.released).flatten()
        come = site.grid.elements(change.acquired).flatten()
        elements = site.grid.elements(held).flatten()
        some = elements[spread(elements.numel()).to(elements.device)]
        every = torch.arange(come.numel())
        newcomers = Newcomers(some, come.numel(), every, change.gradient)
        state, fresh = slotwise(target.optimizer, parameter), target.fresh[parameter]
        starts = starts_of(target.moments, state, fresh, [newcomers], weight_so_far(target.optimizer, parameter))
        reset_masked(target.optimizer, parameter, gone, come, starts)
        for dense in (parameter.detach(), parameter.grad):
            if dense is not None:
                put(dense, torch.cat([gone, come]), 0.0)
        born = pool.born(site.index)
        if born is not None:
            born[change.acquired] = step
    pool.write([entries[site.name].places for site in pool.sites])


def _follow_masked(copy: MaskedPool, pool: MaskedPool, changes: Mapping[str, Change]) -> None:
    for site in copy.sites:
        change = changes.get(site.name)
        if change is not None:
            both = torch.cat([change.released, change.acquired])
            put(site.parameter.detach(), site.grid.elements(both).flatten(), 0.0)
            mine, born = copy.born(site.index), pool.born(site.index)
            if mine is not None and born is not None:
                mine.copy_(born)
    copy.write([pool.places(site.index) for site in pool.sites])
