"""What a move of widths writes beside its gather: start values of new units, and what readers are compensated for."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from realloc.kernels.gather import to_slots
from realloc.plan import Write
from realloc.pool.widths import RUNNING, WidePool, entries
from realloc.sites.wide import WideSite


@torch.no_grad()
def write(owner: nn.Module, pools: Sequence[WidePool], writes: Sequence[Write], units: Sequence[Tensor]) -> None:
    """Make the writes of a plan in a model whose pools were moved already: values first, then what goes into biases.

    Args:
        owner: of the pools.
        pools: of one space.
        writes: in their order; later ones win.
        units: for each group, which unit each of its units was before; -1: new.
    """
    sites = {site.name: site for pool in pools for site in pool.sites}
    behind = dict(pools[0].space.behind)
    for one in writes:
        site = sites[one.parameter]
        if one.kind == "running":
            assert one.units is not None
            _copy_running(site, one.units, one.values, units)
        elif one.kind == "rows":
            assert one.units is not None
            _write_rows(site, one.units, one.values, units)
        elif one.kind == "columns":
            assert one.units is not None
            _write_columns(site, one.units, one.values, units)
    like = _originals(sites, writes, units)
    for one in writes:
        if one.kind in ("reader", "gone"):  # a copy reads no new unit yet, but as much of those that went
            site = sites[one.parameter]
            _shift(owner, sites, site, behind.get(site.name), one.values, like if one.kind == "gone" else units)


def _originals(sites: dict[str, WideSite], writes: Sequence[Write], units: Sequence[Tensor]) -> list[Tensor]:
    """The units of before, as ``units``; of one that is a copy, the one that it copies."""
    found = [old.cpu() for old in units]
    for one in writes:
        if one.kind == "copies":
            group = sites[one.parameter].member.rows.group
            assert group is not None and one.units is not None
            found[group] = found[group].index_copy(0, one.units, one.values.to(found[group]))
    return found


def _write_rows(site: WideSite, new: Tensor, values: Tensor, units: Sequence[Tensor]) -> None:
    """New rows, at the columns that were there before; what they read of new columns stays zero."""
    member, whole = site.member, site.of(site.pool.parameter.detach())
    rows = to_slots(new, member.rows.block).to(whole.device)
    if member.columns is None:
        whole[rows] = values.reshape(-1).to(whole)
        return
    old = entries(member.columns, units).to(whole.device)
    inner = values.reshape(len(rows), -1, *member.tail).to(whole)
    stay = (old >= 0).nonzero().flatten()
    whole[rows[:, None], stay] = inner[:, old[stay]]


def _write_columns(site: WideSite, new: Tensor, values: Tensor, units: Sequence[Tensor]) -> None:
    """Columns, at the rows that were there before."""
    member, whole = site.member, site.of(site.pool.parameter.detach())
    assert member.columns is not None
    columns = to_slots(new, member.columns.block).to(whole.device)
    old = entries(member.rows, units).to(whole.device)
    inner = values.reshape(len(new), -1, member.columns.block * prod(member.tail)).transpose(0, 1)
    inner = inner.reshape(-1, len(columns), *member.tail).to(whole)
    stay = (old >= 0).nonzero().flatten()
    whole[stay[:, None], columns] = inner[old[stay]]


def _shift(
    owner: nn.Module,
    sites: dict[str, WideSite],
    reader: WideSite,
    behind: str | None,
    shift: Tensor,
    units: Sequence[Tensor],
) -> None:
    """Add to the bias of a reader; where it has none, take from the running mean of the norm right behind it."""
    layer = reader.name.rpartition(".")[0]
    old = entries(reader.member.rows, units)
    mine = torch.where(old < 0, 0.0, shift.cpu()[old.clamp(min=0)])
    site, plain = sites.get(f"{layer}.bias" if layer else "bias"), owner.get_submodule(layer)._parameters.get("bias")
    if site is not None:
        whole = site.of(site.pool.parameter.detach())
        whole += mine.to(whole)
    elif plain is not None:
        if plain.requires_grad:  # a frozen one stays as it is
            plain.add_(mine.to(plain))
    elif behind is not None:
        mean: Tensor = owner.get_submodule(behind).running_mean  # type: ignore[assignment]
        mean -= mine.to(mean)


def _copy_running(site: WideSite, new: Tensor, copied: Tensor, units: Sequence[Tensor]) -> None:
    assert site.member.rows.group is not None
    now = {int(old): at for at, old in enumerate(units[site.member.rows.group].tolist()) if old >= 0}
    there = torch.tensor([now[int(old)] for old in copied.tolist()], dtype=torch.int64)
    block = site.member.rows
    for part in RUNNING:
        values = site.pool.running(part, site.index)
        values[to_slots(new, block.block)] = values[to_slots(there, block.block)]
