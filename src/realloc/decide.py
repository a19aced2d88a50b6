"""One decision: scores in, a frozen plan out. Touches no tensor of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from realloc.allocate.globally import globally
from realloc.allocate.room import Room
from realloc.errors import StateError
from realloc.methods.method import Method
from realloc.observe.gradients import BLOCK_WEIGHTS, GradientSource
from realloc.plan import Change, Plan
from realloc.rng import stream
from realloc.scores.score import Score
from realloc.scores.seen import Seen
from realloc.select.streaming import Best
from realloc.select.top_k import top_k
from realloc.sites.grid import Grid
from realloc.sites.places import among


@final
@dataclass(frozen=True, eq=False)
class Standing:
    """What a decision may know of one site."""

    name: str
    grid: Grid
    shape: tuple[int, ...]
    places: Tensor  # int64 [h], sorted
    values: Tensor  # [h, size]
    gradient: GradientSource | None = None
    average: Tensor | None = None  # [units, size]
    age: Tensor | None = None  # int64 [h], steps since acquired
    active: bool = True  # took part in a backward of this step; if not, nothing of it moves

    def seen_held(self, generator: torch.Generator, gradient: Tensor | None) -> Seen:
        """The view a keep score gets: the held units."""
        average = None if self.average is None else self.average[self.places]
        grid = (self.grid.rows, self.grid.columns)
        return Seen(self.places, grid, self.places, generator, self.values, gradient, average, self.age)

    def seen_elsewhere(self, places: Tensor, held: Tensor, generator: torch.Generator, gradient: Tensor | None) -> Seen:
        """The view a want score gets: units at other places, whose values are zero; ``held`` are those that stay."""
        average = None if self.average is None else self.average[places]
        nothing = self.values.new_zeros(places.numel(), self.grid.size)
        grid = (self.grid.rows, self.grid.columns)
        return Seen(places, grid, held, generator, nothing, gradient, average)


@final
class NotFinite(Exception):
    """A score is NaN or Inf: no move."""


@final
@dataclass(frozen=True, eq=False)
class _Drop:
    """One site after its releases: who stays, who went, what may come."""

    survivors: Tensor
    released: Tensor
    candidates: Tensor | None  # None: every place that is not held
    threshold: float | None

    def room(self, grid: Grid, regrow: bool) -> int:
        if self.candidates is not None:
            return self.candidates.numel()
        return grid.units - self.survivors.numel() - (0 if regrow else self.released.numel())


def decide(
    sites: Sequence[Standing], method: Method, *, step: int, phase: float, seed: int, target: int | None = None
) -> Plan:
    """Decide one move for the sites of one pool.

    Args:
        sites: what is known of each.
        method: the recipe.
        step: optimizer steps taken, for the random streams.
        phase: 0 at the schedule's begin, 1 at its end.
        seed: the run's seed.
        target: units that the pool holds afterwards; by default what the method's density curve asks of these sites.

    Returns:
        A plan whose counts balance: what is released in all is acquired in all, less what the density curve parks.

    Raises:
        StateError: a selector or allocator of the method that gives another number of units than it was asked for.
    """
    try:
        counts = [site.places.numel() for site in sites]
        goal = target_of(sites, method, phase) if target is None else target
        # one site's scores at a time, unless one ranking over all of them is asked for
        keeps: Iterable[Tensor] = (_keep(site, method, stream(seed, "keep", site.name, step)) for site in sites)
        if goal < sum(counts):
            keeps = list(keeps)
            counts = _counts_after_pruning(sites, keeps, goal)
        drops = [
            _release(site, keep, count, method, phase, stream(seed, "release", site.name, step))
            for site, keep, count in zip(sites, keeps, counts, strict=True)
        ]
        grows = _shares(sites, drops, counts, method)
        changes = tuple(
            _change(site, drop, grow, method, stream(seed, "acquire", site.name, step))
            for site, drop, grow in zip(sites, drops, grows, strict=True)
        )
    except NotFinite as error:
        return Plan(step, (), skipped=str(error))
    return Plan(step, changes)


def _keep(site: Standing, method: Method, generator: torch.Generator) -> Tensor:
    gradient = None
    if "gradient" in method.keep.needs and site.gradient is not None:
        gradient = site.gradient.at(site.places)
    return _finite(method.keep(site.seen_held(generator, gradient)), site, method.keep)


def _finite(scores: Tensor, site: Standing, score: Score) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise NotFinite(f"{score.name} scores of {site.name} are not finite")
    return scores


def target_of(sites: Sequence[Standing], method: Method, phase: float) -> int:
    """Units that the density curve leaves to these sites: never more than they hold."""
    held = sum(site.places.numel() for site in sites)
    if method.held is None:
        return held
    return min(held, round(method.held(phase) * sum(site.grid.units for site in sites)))


def least_of(sites: Sequence[Standing]) -> int:
    """Units that pruning must leave: one a site, and all of a site that took no part."""
    return sum(min(1, site.places.numel()) if site.active else site.places.numel() for site in sites)


def _counts_after_pruning(sites: Sequence[Standing], keeps: Sequence[Tensor], target: int) -> list[int]:
    """Units each site keeps when the density curve falls: one global ranking by the keep score."""
    rooms = []
    for site in sites:
        held = site.places.numel()
        least = min(1, held) if site.active else held
        rooms.append(Room(site.name, (site.grid.rows, site.grid.columns), least=least, most=held))
    return list(globally(list(keeps))(rooms, max(target, least_of(sites))))


def _release(
    site: Standing, keep: Tensor, count: int, method: Method, phase: float, generator: torch.Generator
) -> _Drop:
    """Rank the held units once; prune down to ``count``, then release the drop fraction of the rest."""
    free = site.grid.units - site.places.numel()
    wanted = math.floor(method.drop(phase) * count) if method.want is not None and site.active else 0
    candidates = None
    if method.candidates.factor is not None and wanted:
        candidates = method.candidates.places(site.places, site.grid.units, generator, min(wanted, free))
        wanted = min(wanted, candidates.numel())
    elif not method.regrow:
        wanted = min(wanted, free)
    stay = count - wanted
    chosen = _exactly(method.survive(phase)(keep, stay, generator), stay, keep.numel(), f"survive of {method.name}")
    gone = torch.ones(keep.numel(), dtype=torch.bool)
    gone[chosen] = False
    threshold = float(keep[gone].max()) if stay < keep.numel() else None
    return _Drop(site.places[~gone], site.places[gone], candidates, threshold)


def _shares(sites: Sequence[Standing], drops: Sequence[_Drop], counts: Sequence[int], method: Method) -> list[int]:
    """How many units each site acquires; in all as many as were released beyond the pruning."""
    if method.want is None:
        return [0] * len(sites)
    released = [count - drop.survivors.numel() for count, drop in zip(counts, drops, strict=True)]
    rooms = [
        Room(
            site.name, (site.grid.rows, site.grid.columns), least=0,
            most=drop.room(site.grid, method.regrow) if site.active else 0,
            evidence=_evidence(site), released=back, shape=site.shape,
        )
        for site, drop, back in zip(sites, drops, released, strict=True)
    ]  # fmt: skip
    grows = list(method.share(rooms, sum(released)))
    if sum(grows) != sum(released) or any(not 0 <= n <= room.most for n, room in zip(grows, rooms, strict=True)):
        raise StateError(
            f"share of {method.name} gave {grows} where {sum(released)} units were to be placed "
            f"within {[room.most for room in rooms]}; return counts that sum to the budget"
        )
    return grows


def _exactly(chosen: Tensor, count: int, among: int, part: str) -> Tensor:
    """Refuse a selection that would lose or double a unit: the ledger sees only what became of it."""
    inside = not chosen.numel() or (int(chosen[0]) >= 0 and int(chosen[-1]) < among)
    if chosen.numel() != count or not inside or bool((chosen.diff() <= 0).any()):
        raise StateError(
            f"{part} selected {chosen.numel()} units where {count} of {among} were asked for; "
            "return so many different indices, ascending"
        )
    return chosen


def _evidence(site: Standing) -> float:
    """Mean absolute running gradient over the held units: SNFS's layer contribution (1907.04840, section 3.2)."""
    if site.average is None or not site.places.numel():
        return 0.0
    return float(site.average[site.places].abs().mean())


def _change(site: Standing, drop: _Drop, grow: int, method: Method, generator: torch.Generator) -> Change:
    before = site.places.numel()
    acquired, wants = torch.empty(0, dtype=torch.int64), torch.empty(0)
    if grow and method.want is not None:
        if drop.candidates is not None:
            acquired, wants = _among(site, drop, grow, method, generator)
        else:
            acquired, wants = _anywhere(site, drop, grow, method, generator)
    back = among(acquired, drop.released)
    released = drop.released[~among(drop.released, acquired)]
    come = acquired[~back]
    gradient = site.gradient.at(come) if method.moments == "seed" and site.gradient is not None else None
    return Change(
        site.name, before, before - released.numel() + come.numel(), released, come,
        keep_threshold=drop.threshold,
        want_threshold=float(wants.min()) if wants.numel() else None,
        predicted_gain=float(wants[~back].sum()) if wants.numel() else 0.0,
        gradient=gradient,
    )  # fmt: skip


def _among(site: Standing, drop: _Drop, grow: int, method: Method, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Acquire from a drawn candidate set: only its own gradient is ever computed."""
    want, candidates = method.want, drop.candidates
    assert want is not None and candidates is not None
    gradient = site.gradient.at(candidates) if "gradient" in want.needs and site.gradient is not None else None
    scores = _finite(want(site.seen_elsewhere(candidates, drop.survivors, generator, gradient)), site, want)
    chosen = _exactly(method.acquire(scores, grow, generator), grow, scores.numel(), f"acquire of {method.name}")
    return candidates[chosen], scores[chosen]


def _anywhere(
    site: Standing, drop: _Drop, grow: int, method: Method, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Acquire from every place that is free, a block of rows at a time."""
    want = method.want
    assert want is not None
    barred = drop.survivors if method.regrow else site.places
    best = Best.none(grow, torch.float64) if method.acquire is top_k else None
    places, scores = [], []
    for first, gradient, count in _blocks(site, want):
        here = torch.ones(count, dtype=torch.bool)
        low, high = torch.searchsorted(barred, torch.tensor([first, first + count])).tolist()
        here[barred[low:high] - first] = False
        inside = here.nonzero().flatten()
        if not inside.numel():
            continue
        block = inside + first
        seen = site.seen_elsewhere(block, drop.survivors, generator, None if gradient is None else gradient[inside])
        found = _finite(want(seen), site, want)
        if best is not None:
            best = best.merged(found, block)
        else:
            places.append(block)
            scores.append(found)
    if best is not None:
        return best.indices, best.scores
    all_places, all_scores = torch.cat(places), torch.cat(scores)
    chosen = _exactly(method.acquire(all_scores, grow, generator), grow, len(all_scores), f"acquire of {method.name}")
    return all_places[chosen], all_scores[chosen]


def _blocks(site: Standing, want: Score) -> Iterator[tuple[int, Tensor | None, int]]:
    if "gradient" in want.needs and site.gradient is not None:
        for first, block in site.gradient.blocks():
            yield first, block, block.shape[0]
        return
    step = max(1, BLOCK_WEIGHTS // max(1, site.grid.columns)) * site.grid.columns
    for first in range(0, site.grid.units, step):
        yield first, None, min(step, site.grid.units - first)
