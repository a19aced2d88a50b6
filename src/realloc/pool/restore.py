"""The way back: dense weights of their own, plain classes, an ordinary optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from realloc.pool.flat import FlatPool
from realloc.pool.found import ignore_in_ddp, take_off
from realloc.pool.groups import Part
from realloc.pool.holdings import Holdings
from realloc.pool.ranks import RankPool
from realloc.pool.widths import WidePool
from realloc.sites.delta import Delta, base_of, drop_delta
from realloc.sites.packed import PackedLinear, PackedSite, unpack
from realloc.sites.rank import Ranked, drop_ranks, frozen_weight
from realloc.sites.wide import Wide, WideSite, settle


@torch.no_grad()
def densify(holdings: Holdings) -> list[tuple[nn.Parameter, list[Part]]]:
    """Make the model plain again, as far as these go. Returns each pool's parameter and the weights that come of it.

    Ranks and deltas are added to the weights they stood beside, and what `prepare` froze may train again.
    """
    taken, by_site = [], {}
    for pool in holdings.flats:
        if isinstance(pool, RankPool) or pool.storage == "delta":
            taken.append((pool.parameter, list[Part]()))
            continue
        if isinstance(pool, WidePool):
            parts = [_wide(site) for site in pool.sites]
        else:
            parts = [_dense(pool, site) for site in pool.sites]
        taken.append((pool.parameter, parts))
        by_site.update({id(s): p for s, p in zip(pool.sites, parts, strict=True)})
    mine = {id(site) for flat in holdings.flats for site in flat.sites}
    for module in list(holdings.owner.modules()):
        if isinstance(module, Wide):
            if any(id(site) not in mine for site in module.realloc_sites.values()):
                continue
            settle(module, {key: by_site[id(site)].parameter for key, site in module.realloc_sites.items()})
            continue
        if not isinstance(module, PackedLinear | Ranked | Delta) or id(module.realloc_site) not in mine:
            continue
        if isinstance(module, PackedLinear):
            unpack(module, by_site[id(module.realloc_site)].parameter)
        elif isinstance(module, Ranked):
            a, b = module.realloc_site.factors()
            _merge(frozen_weight(module), (b.t() @ a).mul_(module.realloc_site.scale))
            drop_ranks(module)
        elif isinstance(module, Delta):
            _merge(base_of(module), module.realloc_site.weight())
            drop_delta(module)
    named = dict(holdings.owner.named_parameters())
    for name in holdings.frozen:
        named[name].requires_grad_(True)
    for known in holdings.pools:
        known.unregister()
    holdings.book.unregister()
    if take_off(holdings):
        for hook in holdings.owner.__dict__.pop("realloc_hooks"):
            hook.remove()
        holdings.owner.__dict__.pop("realloc_link", None)
    ignore_in_ddp(holdings.owner)
    return taken


def _merge(base: Tensor, part: Tensor) -> None:
    base.copy_(base.to(part.dtype) + part)


def _wide(site: WideSite) -> Part:
    pool, (first, _) = site.pool, site.pool.bounds(site.index)
    trains = pool.parameter.requires_grad and not site.frozen
    parameter = nn.Parameter(site.of(pool.parameter.detach()).clone(), requires_grad=trains)
    gradient = site.gradient_of_held()
    parameter.grad = None if gradient is None else gradient.clone()
    return Part(site.name, parameter, torch.arange(parameter.numel()), first, tuple(parameter.shape))


def _dense(pool: FlatPool, site: PackedSite) -> Part:
    first, last = (b * pool.unit_size for b in pool.bounds(site.index))
    elements = site.grid.elements(site.places()).flatten()
    weight = nn.Parameter(
        _scatter(pool.parameter[first:last, 0], elements, site),
        requires_grad=pool.parameter.requires_grad and not site.frozen,
    )
    if pool.parameter.grad is not None:
        weight.grad = _scatter(pool.parameter.grad[first:last, 0], elements, site)
    return Part(site.name, weight, elements, first, site.shape)


def _scatter(values: Tensor, elements: Tensor, site: PackedSite) -> Tensor:
    dense = values.new_zeros(site.capacity)
    dense[elements] = values.detach()
    return dense.view(site.shape)
