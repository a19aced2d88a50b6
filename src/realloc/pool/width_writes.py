"""What a move of widths writes beside its gather: start values of new units, and what readers are compensated for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from realloc.allocate.width_costs import Axis
from realloc.plan import Write
from realloc.pool.widths import RUNNING, WidePool, entries
from realloc.sites.wide import WideBatchNorm1d, WideBatchNorm2d, WideSite


@torch.no_grad()
def write(owner: nn.Module, pools: Sequence[WidePool], writes: Sequence[Write], units: Sequence[Tensor]) -> None:
    """Make the writes of a plan in a model whose pools were moved already.

    Args:
        owner: of the pools.
        pools: of one space.
        writes: in their order; later ones win.
        units: for each group, which unit each of its units was before; -1: new.
    """
    sites = {site.name: site for pool in pools for site in pool.sites}
    for one in writes:
        site = sites[one.parameter]
        if one.kind == "reader":
            _shift(owner, sites, site, one.values, units)
        elif one.kind == "running":
            assert one.units is not None
            _copy_running(site, one.units, one.values, units)
        elif one.kind == "rows":
            assert one.units is not None
            _write_rows(site, one.units, one.values, units)
        else:
            assert one.units is not None
            _write_columns(site, one.units, one.values, units)


def _spread(axis: Axis, units: Tensor) -> Tensor:
    """Entries of units along an axis."""
    return (units[:, None] * axis.block + torch.arange(axis.block)).flatten()


def _write_rows(site: WideSite, new: Tensor, values: Tensor, units: Sequence[Tensor]) -> None:
    member, whole = site.member, site.of(site.pool.parameter.detach())
    rows = _spread(member.rows, new)
    if member.columns is None:
        whole[rows] = values.reshape(-1).to(whole)
        return
    old = entries(member.columns, units)
    inner = values.reshape(len(rows), -1, *member.tail).to(whole)
    shape = (1, -1, *[1] * len(member.tail))
    whole[rows] = torch.where(old.view(shape) < 0, torch.zeros_like(inner[:1, :1]), inner[:, old.clamp(min=0)])


def _write_columns(site: WideSite, new: Tensor, values: Tensor, units: Sequence[Tensor]) -> None:
    member, whole = site.member, site.of(site.pool.parameter.detach())
    assert member.columns is not None
    columns, old = _spread(member.columns, new), entries(member.rows, units)
    tail = 1
    for size in member.tail:
        tail *= size
    before = values.numel() // (len(new) * member.columns.block * tail)
    inner = values.reshape(len(new), before, member.columns.block * tail).transpose(0, 1)
    inner = inner.reshape(before, len(columns), *member.tail).to(whole)
    shape = (-1, 1, *[1] * len(member.tail))
    whole[:, columns] = torch.where(old.view(shape) < 0, torch.zeros_like(inner[:1, :1]), inner[old.clamp(min=0)])


def _shift(
    owner: nn.Module, sites: dict[str, WideSite], reader: WideSite, shift: Tensor, units: Sequence[Tensor]
) -> None:
    """Add to the bias of a reader; where it has none, take from the running mean of the norm that follows it."""
    layer = reader.name.rpartition(".")[0]
    module, group = owner.get_submodule(layer), reader.member.rows.group
    old = entries(reader.member.rows, units)
    mine = torch.where(old < 0, 0.0, shift.cpu()[old.clamp(min=0)])
    bias = sites.get(f"{layer}.bias" if layer else "bias")
    if bias is not None:
        whole = bias.of(bias.pool.parameter.detach())
        whole += mine.to(whole)
        return
    plain = module._parameters.get("bias")
    if plain is not None:
        plain.add_(mine.to(plain))
        return
    for norm in owner.modules():
        if isinstance(norm, WideBatchNorm1d | WideBatchNorm2d):
            site = norm.realloc_sites["weight"]
            if group is not None and site.member.rows.group == group:
                mean = site.pool.running(RUNNING[0], site.index)
                mean -= mine.to(mean)


def _copy_running(site: WideSite, new: Tensor, copied: Tensor, units: Sequence[Tensor]) -> None:
    assert site.member.rows.group is not None
    now = {int(old): at for at, old in enumerate(units[site.member.rows.group].tolist()) if old >= 0}
    there = torch.tensor([now[int(old)] for old in copied.tolist()], dtype=torch.int64)
    block = site.member.rows
    for part in RUNNING:
        values = site.pool.running(part, site.index)
        values[_spread(block, new)] = values[_spread(block, there)]
