"""From a model after a backward to what a decision may know of each site."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from realloc.kernels.finite import all_finite
from realloc.observe.gradients import CandidateGradient, DenseGradient, GradientSource, PairGradient, Reduce
from realloc.observe.ranks import Ranks
from realloc.observe.scale import scale_of
from realloc.observe.standing import Standing
from realloc.pool.flat import FlatPool
from realloc.pool.holdings import Site
from realloc.pool.masked import MaskedPool
from realloc.pool.ranks import RankPool
from realloc.scores.held_ranks import HeldRanks
from realloc.sites.masked import MaskedSite
from realloc.sites.packed import LEAST, PackedSite
from realloc.sites.rank import RankSite


def took_part(site: Site) -> bool:
    """Whether a site was in a backward of this step, on this rank."""
    return site.touched if isinstance(site, MaskedSite) else site.tap.touched > 0 and not site.frozen


def active_sites(sites: Iterable[Site], ranks: Ranks) -> dict[str, bool]:
    """Which sites were in a backward of this step, on any rank."""
    known = list(sites)
    flags = ranks.largest([int(took_part(site)) for site in known])
    return {site.name: bool(flag) for site, flag in zip(known, flags, strict=True)}


def finite(parameters: Iterable[nn.Parameter], ranks: Ranks) -> bool:
    """Whether every gradient is finite on every rank."""
    grads = [p.grad for p in parameters if p.grad is not None]
    mine = all(map(all_finite, grads))
    return not ranks.largest([int(not mine)])[0]


def overwritten(sites: Iterable[Site], ranks: Ranks) -> bool:
    """Whether a tensor that a decision will look at was written to after its backward, on any rank."""
    taps = [site.tap for site in sites if not isinstance(site, MaskedSite)]
    return bool(ranks.largest([int(any(tap.overwritten() for tap in taps))])[0])


def gradients_of(pool: FlatPool | MaskedPool, ranks: Ranks) -> dict[str, GradientSource]:
    """Where the gradient of any unit comes from, as the optimizer sees it; without sites that collected nothing."""
    brought = _sources(pool, ranks.mean)
    known = [
        (site.places, held, brought[site.name])
        for site in pool.sites
        if site.name in brought and (held := site.gradient_of_held()) is not None
    ]
    scale = scale_of(known)
    return brought if scale == 1.0 else _sources(pool, lambda tensor: ranks.mean(tensor) * scale)


def _sources(pool: FlatPool | MaskedPool, reduce: Reduce) -> dict[str, GradientSource]:
    found = {site.name: _source_of(site, reduce) for site in pool.sites}
    return {name: source for name, source in found.items() if source is not None}


def _source_of(site: PackedSite | MaskedSite, reduce: Reduce) -> GradientSource | None:
    if isinstance(site, PackedSite):
        return (
            PairGradient(site.grid, site.tap.pairs, site.tap.dense, site.values(), reduce) if site.tap.armed else None
        )
    if not site.armed:
        return None
    dense = site.dense_gradient
    return DenseGradient(site.grid, torch.zeros_like(site.parameter) if dense is None else dense, reduce)


def standing_of(
    pool: FlatPool | MaskedPool,
    site: PackedSite | MaskedSite,
    step: int,
    average: Tensor | None,
    gradient: GradientSource | None,
    active: bool,
    candidates: CandidateGradient | None = None,
    impression: Tensor | None = None,
) -> Standing:
    """What a decision at ``step`` may know of one site."""
    places, age = site.places(), None
    born = pool.born if isinstance(pool, FlatPool) else pool.born(site.index)
    if born is not None:
        held = born[slice(*pool.bounds(site.index))] if isinstance(pool, FlatPool) else born[places]
        age = step - held.long()
    return Standing(
        site.name, site.grid, site.shape, places, site.values(), gradient, average, age, active, candidates,
        LEAST.get(site.storage, 1), impression,
    )  # fmt: skip


def ranks_standing_of(pool: RankPool, site: RankSite, ranks: Ranks, active: bool) -> HeldRanks:
    """What a decision may know of the ranks of one layer."""
    a, b = site.factors()
    means = None
    if pool.means is not None:
        mean, spread = (site.parts_of(buffer) for buffer in pool.means)
        means = mean[0], mean[1], spread[0], spread[1]
    return HeldRanks(
        site.name, site.cap, site.shape, site.places().cpu(), a, b, site.scale, means, tuple(site.tap.pairs),
        tuple(site.tap.dense), ranks.mean, active,
    )  # fmt: skip
