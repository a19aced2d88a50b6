"""Gradients of candidates, summed over the steps before a move, in buffers of the model so that a resume has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from realloc.errors import StateError
from realloc.kernels.team import DAMAGED
from realloc.observe.candidates import Candidates
from realloc.observe.gradients import CandidateGradient, GradientSource
from realloc.pool.flat import FlatPool
from realloc.pool.holdings import Holdings
from realloc.pool.masked import MaskedPool
from realloc.sites.masked import MaskedSite
from realloc.sites.packed import PackedSite

PARTS = ("candidates", "collected", "gradients")


@final
class CandidateSums:
    """Those of one pool. Buffers of constant length on the owner, for K candidates at most and S sites:

    candidates int64 [K]: their places, ascending within each site.
    collected int64 [S + 2]: first candidate of each site, the end of the last, and the number of steps so far.
    gradients [2, K, size]: sums of the gradient, and of its square.
    """

    def __init__(self, holdings: Holdings, pool: FlatPool | MaskedPool, number: int, candidates: Candidates) -> None:
        self._owner = holdings.owner
        self._sites: Sequence[PackedSite | MaskedSite] = pool.sites
        self._names = {part: f"{holdings.prefix}{part}{number}" for part in PARTS}
        if self._names["candidates"] in self._owner._buffers:  # registered before, so that a checkpoint could be loaded
            return
        units = sum(site.grid.units for site in pool.sites)
        most = min(math.floor((candidates.factor or 0.0) * pool.capacity), units - pool.capacity)
        like = pool.sites[0].values()
        sums = torch.zeros(2, most, pool.unit_size, dtype=like.dtype, device=like.device)
        self._owner.register_buffer(self._names["candidates"], torch.zeros(most, dtype=torch.int64, device=like.device))
        self._owner.register_buffer(self._names["collected"], torch.zeros(len(pool.sites) + 2, dtype=torch.int64))
        self._owner.register_buffer(self._names["gradients"], sums)

    def _buffer(self, part: str) -> Tensor:
        found = self._owner._buffers[self._names[part]]
        assert found is not None
        return found

    @property
    def most(self) -> int:
        """Most candidates there can be."""
        return len(self._buffer("candidates"))

    @property
    def steps(self) -> int:
        """Steps collected so far."""
        return int(self._buffer("collected")[-1])

    def begin(self, places: Sequence[Tensor]) -> None:
        """Name the candidates of each site, int64 ascending."""
        ends = [0]
        for mine in places:
            ends.append(ends[-1] + mine.numel())
        self._buffer("candidates")[: ends[-1]] = torch.cat([*places]).to(self._buffer("candidates").device)
        self._buffer("collected").copy_(torch.tensor([*ends, 0]))
        self._buffer("gradients").zero_()

    def add(self, gradients: Mapping[str, GradientSource]) -> None:
        """Take in one step, by site; a site that took no part in it has a gradient of zero."""
        sums = self._buffer("gradients")
        for index, site in enumerate(self._sites):
            first, last = self._bounds(index)
            if first < last and site.name in gradients:
                found = gradients[site.name].at(self._places(index)).to(sums.dtype)
                sums[0, first:last].add_(found)
                sums[1, first:last].add_(found.square())
        self._buffer("collected")[-1:].add_(1)

    def of(self, index: int) -> CandidateGradient | None:
        """What is known of the candidates of one site; None: no step was collected."""
        steps = self.steps
        if not steps:
            return None
        first, last = self._bounds(index)
        total, square = self._buffer("gradients")[:, first:last]
        return CandidateGradient(self._places(index), total / steps, (square / steps).sqrt())

    def forget(self) -> None:
        """There are no candidates until the next begin."""
        self._buffer("collected").zero_()

    def _bounds(self, index: int) -> tuple[int, int]:
        first, last = self._buffer("collected")[index : index + 2].tolist()
        if not 0 <= first <= last <= self.most:
            raise StateError(DAMAGED)
        return first, last

    def _places(self, index: int) -> Tensor:
        first, last = self._bounds(index)
        places = self._buffer("candidates")[first:last]
        units = self._sites[index].grid.units
        inside = not places.numel() or (int(places[0]) >= 0 and int(places[-1]) < units)
        if not inside or bool((places.diff() <= 0).any()):
            raise StateError(DAMAGED)
        return places

    def unregister(self) -> None:
        """Take the buffers off the model."""
        for name in self._names.values():
            self._owner._buffers.pop(name, None)


def sums_of(holdings: Holdings, candidates: Candidates) -> tuple[CandidateSums, ...]:
    """One for each pool of weights, or none where the method looks at one step only."""
    pools = [pool for pool in holdings.pools if isinstance(pool, FlatPool | MaskedPool)]
    if candidates.steps < 2:
        return ()
    return tuple(CandidateSums(holdings, pool, number, candidates) for number, pool in enumerate(pools))
