"""First impressions: the gradient of each unit, summed over the interval in which it entered.

Between two decisions a unit is new or it is not, so the sums begin anew at each decision and no slot needs to be
followed: they lie in the order of the pool, and are read before the move that changes it.
"""

from __future__ import annotations

from typing import Final, final

import torch
from torch import Tensor

from realloc.pool.flat import FlatPool
from realloc.pool.holdings import Holdings, Site
from realloc.pool.masked import MaskedPool
from realloc.sites.masked import MaskedSite
from realloc.sites.packed import PackedSite

NEVER: Final = float("-inf")  # the impression of a unit that was never held through a step


@final
class Impressions:
    """Those of one model, or nothing where the method does not ask for them. Buffers of constant length on the owner:

    realloc_entry{N} ``[n]``: for the pool N, sums of the gradient since the last decision, in the order of its slots.
    realloc_impressions{S} float64 ``[units]``: for the site S, the best first impression of each unit so far.
    realloc_folded int64 ``[2]``: the step of that decision, and how many steps were summed since.
    """

    def __init__(self, holdings: Holdings, active: bool) -> None:
        self._holdings = holdings
        self.active = active
        self._pools = [pool for pool in holdings.pools if isinstance(pool, FlatPool | MaskedPool)] if active else []
        self._sites = {name: f"{holdings.prefix}impressions{i}" for i, name in enumerate(holdings.sites)}
        self._folded = f"{holdings.prefix}folded"
        owner = holdings.owner
        if not active or self._folded in owner._buffers:  # registered before, so that a checkpoint could be loaded
            return
        for number, pool in enumerate(self._pools):
            like = pool.sites[0].values()
            dtype = like.dtype if like.element_size() >= 4 else torch.float32
            sums = torch.zeros(pool.capacity * pool.unit_size, dtype=dtype, device=like.device)
            owner.register_buffer(self._entry(number), sums)
            for site in pool.sites:
                never = torch.full((site.grid.units,), NEVER, dtype=torch.float64, device=like.device)
                owner.register_buffer(self._sites[site.name], never)
        owner.register_buffer(self._folded, torch.zeros(2, dtype=torch.int64))

    def _entry(self, number: int) -> str:
        return f"{self._holdings.prefix}entry{number}"

    def _buffer(self, name: str) -> Tensor:
        found = self._holdings.owner._buffers[name]
        assert found is not None
        return found

    def of(self, site: Site) -> Tensor | None:
        """The impressions of the units that a site holds, float64 ``[h]``; one that was never seen has the lowest."""
        return self._buffer(self._sites[site.name])[site.places()] if self.active else None

    @torch.no_grad()
    def add(self) -> None:
        """Take in the gradient of one step, as the optimizer got it."""
        for number, pool in enumerate(self._pools):
            sums, first = self._buffer(self._entry(number)), 0
            for site in pool.sites:
                last = first + site.held
                gradient = site.gradient_of_held()
                if gradient is not None:
                    sums[first:last].add_(gradient.flatten())
                first = last
        if self._pools:
            self._buffer(self._folded)[1:].add_(1)

    @torch.no_grad()
    def fold(self, step: int) -> None:
        """Before the decision at a step: turn the sums of those that were new into impressions, and begin anew."""
        if not self.active or not int(self._buffer(self._folded)[1]):
            return
        since = int(self._buffer(self._folded)[0])
        for number, pool in enumerate(self._pools):
            sums, first = self._buffer(self._entry(number)), 0
            for site in pool.sites:
                last = first + site.held
                size = sums[first:last].view(-1, site.grid.size).double().abs().sum(1)
                self._better(site, standard(size), since)
                first = last
            sums.zero_()
        self._buffer(self._folded).copy_(torch.tensor([step, 0]))

    def _better(self, site: PackedSite | MaskedSite, score: Tensor, since: int) -> None:
        """Keep the better of the old impressions and these, of the units that entered at the last decision."""
        places, known = site.places(), self._buffer(self._sites[site.name])
        new = _born(site) >= since
        known[places[new]] = torch.maximum(known[places[new]], score[new])

    def unregister(self) -> None:
        """Take the buffers off the model."""
        if self.active:
            sums = [self._entry(number) for number in range(len(self._pools))]
            for name in (self._folded, *sums, *self._sites.values()):
                self._holdings.owner._buffers.pop(name, None)


def standard(scores: Tensor) -> Tensor:
    """``[u]`` numbers in standard deviations from their mean; all zero where they do not differ.

    >>> standard(torch.tensor([1.0, 3.0])).tolist(), standard(torch.tensor([2.0])).tolist()
    ([-1.0, 1.0], [0.0])
    """
    apart = scores - scores.mean()
    spread = apart.square().mean().sqrt()
    return apart / spread if float(spread) > 0 else torch.zeros_like(scores)


def _born(site: PackedSite | MaskedSite) -> Tensor:
    """The step at which each held unit was acquired, ``[h]``."""
    if isinstance(site, MaskedSite):
        born = site.pool.born(site.index)
        assert born is not None
        return born[site.places()]
    pool = site.pool
    assert isinstance(pool, FlatPool) and pool.born is not None
    return pool.born[slice(*pool.bounds(site.index))]
