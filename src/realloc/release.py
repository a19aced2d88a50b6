"""The first half of a decision: rank what is held, and say what goes, what stays and what may come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from realloc.allocate.globally import globally
from realloc.allocate.room import Room
from realloc.kernels.finite import all_finite
from realloc.kernels.search import draw
from realloc.methods.method import Method
from realloc.observe.standing import Standing
from realloc.scores.score import Score
from realloc.select.pick import pick
from realloc.sites.grid import Grid


@final
class NotFinite(Exception):
    """A score is NaN or Inf: no move."""


@final
@dataclass(frozen=True, eq=False)
class Drop:
    """One site after its releases: who stays, who went, what may come."""

    survivors: Tensor
    released: Tensor
    candidates: Tensor | None  # None: every place that is not held
    threshold: float | None

    def room(self, grid: Grid, regrow: bool) -> int:
        """How many units the site may acquire; with ``regrow`` also those that just went."""
        if self.candidates is not None:
            return self.candidates.numel()
        return grid.units - self.survivors.numel() - (0 if regrow else self.released.numel())


def keep_scores(site: Standing, method: Method, generator: torch.Generator) -> Tensor:
    """What each held unit of a site is worth."""
    gradient = None
    if "gradient" in method.keep.needs and site.gradient is not None:
        gradient = site.gradient.at(site.places)
    return finite(method.keep(site.seen_held(generator, gradient)), site, method.keep)


def finite(scores: Tensor, site: Standing, score: Score) -> Tensor:
    """Pass scores on, or raise `NotFinite`."""
    if not all_finite(scores):
        raise NotFinite(f"{score.name} scores of {site.name} are not finite")
    return scores


def release(
    sites: Sequence[Standing],
    keeps: Sequence[Tensor],
    counts: Sequence[int],
    method: Method,
    phase: float,
    generators: Sequence[torch.Generator],
) -> list[Drop]:
    """Rank the held units of each site once; prune down to its count, then release the drop fraction of the rest."""
    wanted = _wanted(sites, keeps, counts, method, phase)
    candidates = _candidates(sites, wanted, method, generators)
    stays = [count - want for count, want in zip(counts, wanted, strict=True)]
    picked = pick(method.survive(phase), list(zip(keeps, stays, strict=True)), generators, f"survive of {method.name}")
    return [
        Drop(site.places[chosen], site.places[gone], few, float(keep[gone].max()) if gone.numel() else None)
        for site, keep, (chosen, gone), few in zip(sites, keeps, picked, candidates, strict=True)
    ]


def ranked(sites: Sequence[Standing], keeps: Sequence[Tensor], counts: Sequence[int], target: int) -> list[int]:
    """How many of its best units each site keeps, at most its count, by one ranking over all sites."""
    rooms = [
        Room(site.name, (site.grid.rows, site.grid.columns), least=least_here(site, count), most=count)
        for site, count in zip(sites, counts, strict=True)
    ]
    return list(globally(keeps)(rooms, target))


def least_here(site: Standing, count: int) -> int:
    """Units that a site keeps of so many, whatever they are worth: all of them, if it took no part."""
    return min(site.least, count) if site.active else count


def _wanted(
    sites: Sequence[Standing], keeps: Sequence[Tensor], counts: Sequence[int], method: Method, phase: float
) -> list[int]:
    """How many units each site releases of the count that it holds after pruning."""
    if method.want is None:
        return [0] * len(sites)
    wanted = [
        math.floor(method.drop(phase) * count) if site.active else 0 for site, count in zip(sites, counts, strict=True)
    ]
    if method.across:
        moving = sum(count for site, count in zip(sites, counts, strict=True) if site.active)
        total = min(math.floor(method.drop(phase) * moving), sum(counts) - sum(map(least_here, sites, counts)))
        if method.candidates.steps > 1:
            total = min(total, sum(few.places.numel() for site in sites if (few := site.candidates) and site.active))
        stays = ranked(sites, keeps, counts, sum(counts) - total)
        wanted = [count - stay for count, stay in zip(counts, stays, strict=True)]
    if method.candidates.steps == 1 and (method.candidates.factor is not None or not method.regrow):
        free = [site.grid.units - site.places.numel() for site in sites]
        wanted = [min(want, room) for want, room in zip(wanted, free, strict=True)]
    return wanted


def _candidates(
    sites: Sequence[Standing], wanted: Sequence[int], method: Method, generators: Sequence[torch.Generator]
) -> list[Tensor | None]:
    """The places of each site whose want is looked at, at least as many as are wanted; None: every place."""
    if method.candidates.factor is None:
        return [None] * len(sites)
    if method.candidates.steps > 1:
        return [None if site.candidates is None else site.candidates.places for site in sites]
    drawing = [
        method.candidates.lot(site.places, site.grid.units, generator, want)
        for site, want, generator in zip(sites, wanted, generators, strict=True)
        if want or method.across
    ]
    drawn = iter(draw(drawing))
    return [
        next(drawn).to(site.places.device) if want or method.across else None
        for site, want in zip(sites, wanted, strict=True)
    ]
