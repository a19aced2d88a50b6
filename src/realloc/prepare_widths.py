"""Putting the parameters of moving widths into pools: which, how long, and the table that says so. Installs no hook."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor, nn

from realloc.allocate.width_costs import Purse, Space
from realloc.choose_widths import Chosen, choose_widths
from realloc.errors import ConfigError, plain
from realloc.methods.width_method import WidthMethod
from realloc.plan import SiteLine, StartPlan
from realloc.pool.found import free_prefix, put_on
from realloc.pool.groups import Part
from realloc.pool.holdings import Holdings
from realloc.pool.widths import WidePool
from realloc.sites.wide import WideSite, widen

GroupKey = Callable[[str], Hashable]
MORE: Final = 1.5  # slots of a pool of weights under a budget of FLOPs, over those of the start


@final
@dataclass(frozen=True, eq=False)
class WidthStart:
    """The space that moves, its widths at the start, and the budget."""

    chosen: Chosen
    budget: int  # in the method's currency: what the start costs
    final: int  # what may be spent at the end


def plan_widths(root: nn.Module, method: WidthMethod) -> WidthStart:
    """Choose dimensions and count what they cost. Changes nothing.

    Raises:
        ConfigError: no dimension, shared or frozen parameters, or a budget below one unit a group.
    """
    chosen = choose_widths(root, method)
    space = chosen.space
    budget = space.cost(chosen.widths, method.currency)
    final = round(budget * method.share_at(1.0))
    floor = space.cost(space.least, method.currency)
    if final < floor:
        least = method.where.least
        each = "one unit in each of" if least == 1 else f"{least} units in each of"
        share = math.ceil(1e4 * floor / budget) / 1e4  # rounded up: it must do
        raise ConfigError(
            f"{method.name} may spend {final:,} {method.currency} at the end, and {each} {len(space.groups)} groups "
            f"({', '.join(map(plain, space.groups[:3]))}{', ...' if len(space.groups) > 3 else ''}) costs {floor:,}; "
            f"raise its share to {share:g}" + (" or lower least" if least > 1 else "")
        )
    users: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    for member in space.members:
        parameter = root.get_parameter(member.name)
        shared = users[id(parameter)]
        if len(shared) > 1:
            raise ConfigError(
                f"{plain(shared[0])} is shared with {plain(shared[1])}; exclude the layer: on(exclude=...)"
            )
        if parameter.is_meta:
            raise ConfigError(f"{plain(member.name)} is on the meta device; load or initialise the model first")
        if not parameter.requires_grad:
            raise ConfigError(f"{plain(member.name)} is frozen; thaw it, or exclude its layer: on(exclude=...)")
        if not bool(torch.isfinite(parameter).all()):
            raise ConfigError(f"{plain(member.name)} has NaN or Inf; initialise or load it before attach")
    return WidthStart(chosen, budget, final)


def describe_widths(start: WidthStart, method: WidthMethod) -> StartPlan:
    """The table that `prepare` returns."""
    space, widths = start.chosen.space, start.chosen.widths
    lines = []
    for member in space.members:
        count = member.parameters(widths)
        lines.append(SiteLine(member.name, member.shape(widths), count, count, "wide", "dense"))
    notes = [
        f"{plain(name)}: {width} units, {least} to {most}, one more costs "
        f"{space.marginal(widths, g, method.currency):,} {method.currency}"
        for g, (name, width, least, most) in enumerate(zip(space.groups, widths, space.least, space.most, strict=True))
    ]
    if method.currency == "FLOPs":
        notes.append(
            f"budget {start.budget:,} FLOPs a forward of one example; pools have room for {MORE:g} times the weights"
        )
        if any(member.rows.group is not None and member.rows.block > 1 for member in space.members):  # heads
            notes.append("of attention its layers count, not the products of queries with keys, weights with values")
        if method.example is None:
            notes.append(
                "each layer counts for one position: where some see many (tokens) and others one, give "
                "method.on(example=inputs)"
            )
    if start.final < start.budget:
        notes.append(f"{start.final:,} {method.currency} may be spent at the end; handle.compact() gives the rest back")
    notes.append("under torch.compile these layers run eagerly: their shapes really change")
    return StartPlan(
        method.name, method.share_at(1.0), sum(line.held for line in lines), tuple(lines), start.chosen.others,
        tuple(notes), method.asked, (method.where.layers, method.where.exclude),
    )  # fmt: skip


def build_widths(
    root: nn.Module, start: WidthStart, method: WidthMethod, *, seed: int, group: GroupKey | None = None
) -> tuple[Holdings, list[list[Part]]]:
    """Turn the chosen parameters into segments of pools, in place. Returns what each pool took."""
    space, widths = start.chosen.space, start.chosen.widths
    zones: dict[Hashable, list[int]] = {}
    for number, member in enumerate(space.members):
        parameter = root.get_parameter(member.name)
        key = parameter.dtype, str(parameter.device), group(member.name) if group else None, member.columns is None
        zones.setdefault(key, []).append(number)
    prefix, pools, parts = free_prefix(root), list[WidePool](), list[list[Part]]()
    for members in zones.values():
        pool, taken = _pool(root, (prefix, len(pools)), space, members, widths, method)
        pools.append(pool)
        parts.append(taken)
    sites = {site.name: site for pool in pools for site in pool.sites}
    for name, module in list(root.named_modules()):
        mine = _of_module(name, sites)
        if mine:
            widen(module, mine)
    holdings = Holdings(root, tuple(pools), None, prefix=prefix)
    holdings.open_book(seed, start.budget)
    put_on(holdings)
    return holdings, parts


def _of_module(name: str, sites: dict[str, WideSite]) -> dict[str, WideSite]:
    found = {key: sites.get(f"{name}.{key}" if name else key) for key in ("weight", "bias")}
    return {key: site for key, site in found.items() if site is not None}


@torch.no_grad()
def _pool(
    root: nn.Module,
    place: tuple[str, int],
    space: Space,
    members: Sequence[int],
    widths: tuple[int, ...],
    method: WidthMethod,
) -> tuple[WidePool, list[Part]]:
    prefix, number = place
    pool = WidePool(root, number, space, members, widths, method.currency, prefix)
    values, statistics, parts, first = list[Tensor](), list[Tensor](), list[Part](), 0
    for number_of in members:
        member = space.members[number_of]
        parameter = root.get_parameter(member.name)
        flat = parameter.detach().reshape(-1)
        values.append(flat)
        parts.append(Part(member.name, parameter, torch.arange(flat.numel()), first, tuple(parameter.shape)))
        first += flat.numel()
        norm = root.get_submodule(member.name.rpartition(".")[0])
        kept = [norm._buffers.get(part) for part in ("running_mean", "running_var")]
        fresh = [torch.zeros_like(flat), torch.ones_like(flat)]
        is_norm = member.name.endswith(".weight") and kept[0] is not None
        pairs = [(old if is_norm and old is not None else new).to(flat) for old, new in zip(kept, fresh, strict=True)]
        statistics.append(torch.stack(pairs, 1))
    vector = space.members[members[0]].columns is None
    held = sum(flat.numel() for flat in values)
    most = sum(space.members[m].parameters(space.most) for m in members)
    length = most if vector else held if method.currency == "parameters" else min(most, int(MORE * held))
    spare = values[0].new_zeros(length - held)
    normed = vector and any(space.members[m].fill for m in members)
    more = torch.stack([torch.zeros_like(spare), torch.ones_like(spare)], 1)
    pool.register(torch.cat([*values, spare]).unsqueeze(1), torch.cat([*statistics, more]) if normed else None)
    pool.write(widths)
    return pool, parts


def purse_of(pools: Sequence[WidePool], budget: int) -> Purse:
    """What may be spent on the widths of a model: a budget in its currency, and the slots of its pools."""
    space = pools[0].space
    numbers = {member.name: number for number, member in enumerate(space.members)}
    rooms = tuple((tuple(numbers[site.name] for site in pool.sites), pool.capacity) for pool in pools)
    return Purse(space, budget, pools[0].currency, rooms)
