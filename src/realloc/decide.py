"""One decision: scores in, a frozen plan out. Touches no tensor of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from realloc.allocate.globally import globally
from realloc.allocate.room import Room
from realloc.errors import StateError
from realloc.kernels.search import draw, parted
from realloc.methods.method import Method
from realloc.observe.gradients import BLOCK_WEIGHTS, GradientSource
from realloc.plan import Change, Plan
from realloc.rng import stream
from realloc.scores.score import Score
from realloc.scores.seen import Seen
from realloc.select.selector import Selector
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
        nothing = self.values.new_zeros(1, 1).expand(places.numel(), self.grid.size)
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


@final
@dataclass(frozen=True, eq=False)
class _Gain:
    """Places that a site may acquire, or does, ascending, and what each is wanted for."""

    places: Tensor
    wants: Tensor


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
        keeps = [_keep(site, method, stream(seed, "keep", site.name, step)) for site in sites]
        if goal < sum(counts):
            counts = _counts_after_pruning(sites, keeps, goal)
        generators = [stream(seed, "release", site.name, step) for site in sites]
        drops = _release(sites, keeps, counts, method, phase, generators)
        del keeps
        grows = _shares(sites, drops, counts, method)
        generators = [stream(seed, "acquire", site.name, step) for site in sites]
        gains = _acquire(sites, drops, grows, method, generators)
        changes = tuple(_change(site, drop, gain, method) for site, drop, gain in zip(sites, drops, gains, strict=True))
    except NotFinite as error:
        return Plan(step, (), skipped=str(error))
    return Plan(step, changes)


def _keep(site: Standing, method: Method, generator: torch.Generator) -> Tensor:
    gradient = None
    if "gradient" in method.keep.needs and site.gradient is not None:
        gradient = site.gradient.at(site.places)
    return _finite(method.keep(site.seen_held(generator, gradient)), site, method.keep)


def _finite(scores: Tensor, site: Standing, score: Score) -> Tensor:
    if not math.isfinite(float(scores.sum())) and not bool(torch.isfinite(scores).all()):
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
    sites: Sequence[Standing],
    keeps: Sequence[Tensor],
    counts: Sequence[int],
    method: Method,
    phase: float,
    generators: Sequence[torch.Generator],
) -> list[_Drop]:
    """Rank the held units of each site once; prune down to its count, then release the drop fraction of the rest."""
    free = [site.grid.units - site.places.numel() for site in sites]
    wanted = [
        math.floor(method.drop(phase) * count) if method.want is not None and site.active else 0
        for site, count in zip(sites, counts, strict=True)
    ]
    if method.candidates.factor is not None or not method.regrow:
        wanted = [min(want, room) for want, room in zip(wanted, free, strict=True)]
    candidates = _candidates(sites, wanted, method, generators)
    stays = [count - want for count, want in zip(counts, wanted, strict=True)]
    picked = _pick(method.survive(phase), list(zip(keeps, stays, strict=True)), generators, f"survive of {method.name}")
    return [
        _Drop(site.places[chosen], site.places[gone], few, float(keep[gone].max()) if gone.numel() else None)
        for site, keep, (chosen, gone), few in zip(sites, keeps, picked, candidates, strict=True)
    ]


def _candidates(
    sites: Sequence[Standing], wanted: Sequence[int], method: Method, generators: Sequence[torch.Generator]
) -> list[Tensor | None]:
    """The places of each site whose want is looked at, at least as many as are wanted; None: every place."""
    if method.candidates.factor is None:
        return [None] * len(sites)
    drawing = [
        method.candidates.lot(site.places, site.grid.units, generator, want)
        for site, want, generator in zip(sites, wanted, generators, strict=True)
        if want
    ]
    drawn = iter(draw(drawing))
    return [next(drawn).to(site.places.device) if want else None for site, want in zip(sites, wanted, strict=True)]


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


def _pick(
    selector: Selector, cases: Sequence[tuple[Tensor, int]], generators: Sequence[torch.Generator], part: str
) -> list[tuple[Tensor, Tensor]]:
    """Those selected of each site, and the others.

    A selection that would lose or double a unit is refused: the ledger sees only what became of it.
    """
    if selector is top_k:
        return parted(cases)
    picked = []
    for (scores, count), generator in zip(cases, generators, strict=True):
        among, chosen = scores.numel(), selector(scores, count, generator)
        inside = not chosen.numel() or (int(chosen[0]) >= 0 and int(chosen[-1]) < among)
        if chosen.numel() != count or not inside or bool((chosen.diff() <= 0).any()):
            raise StateError(
                f"{part} selected {chosen.numel()} units where {count} of {among} were asked for; "
                "return so many different indices, ascending"
            )
        left = torch.ones(among, dtype=torch.bool, device=chosen.device)
        left[chosen] = False
        picked.append((chosen, left.nonzero().flatten()))
    return picked


def _evidence(site: Standing) -> float:
    """Mean absolute running gradient over the held units: SNFS's layer contribution (1907.04840, section 3.2)."""
    if site.average is None or not site.places.numel():
        return 0.0
    return float(site.average[site.places].abs().mean())


def _acquire(
    sites: Sequence[Standing],
    drops: Sequence[_Drop],
    grows: Sequence[int],
    method: Method,
    generators: Sequence[torch.Generator],
) -> list[_Gain]:
    """What each site acquires: of its candidates, or of every free place."""
    gains = [_Gain(site.places[:0], torch.empty(0)) for site in sites]
    growing = [i for i, grow in enumerate(grows) if grow and method.want is not None]
    few = [i for i in growing if drops[i].candidates is not None]
    scored = [_among(sites[i], drops[i], method, generators[i]) for i in few]
    cases = [(gain.wants, grows[i]) for i, gain in zip(few, scored, strict=True)]
    picked = _pick(method.acquire, cases, [generators[i] for i in few], f"acquire of {method.name}")
    for i, gain, (chosen, _) in zip(few, scored, picked, strict=True):
        gains[i] = _Gain(gain.places[chosen], gain.wants[chosen])
    for i in growing:
        if drops[i].candidates is None:
            gains[i] = _anywhere(sites[i], drops[i], grows[i], method, generators[i])
    return gains


def _change(site: Standing, drop: _Drop, gain: _Gain, method: Method) -> Change:
    before = site.places.numel()
    released, come, wants = drop.released, gain.places, gain.wants
    if drop.candidates is None and method.regrow:  # a unit may have come back at once
        back = among(come, released)
        released = released[~among(released, come)]
        come, wants = come[~back], wants[~back]
    gradient = site.gradient.at(come) if method.moments == "seed" and site.gradient is not None else None
    return Change(
        site.name, before, before - released.numel() + come.numel(), released, come,
        keep_threshold=drop.threshold,
        want_threshold=float(gain.wants.min()) if gain.wants.numel() else None,
        predicted_gain=float(wants.sum()),
        gradient=gradient,
    )  # fmt: skip


def _among(site: Standing, drop: _Drop, method: Method, generator: torch.Generator) -> _Gain:
    """Score a drawn candidate set: only its own gradient is ever computed."""
    want, candidates = method.want, drop.candidates
    assert want is not None and candidates is not None
    gradient = site.gradient.at(candidates) if "gradient" in want.needs and site.gradient is not None else None
    seen = site.seen_elsewhere(candidates, drop.survivors, generator, gradient)
    return _Gain(candidates, _finite(want(seen), site, want))


def _anywhere(site: Standing, drop: _Drop, grow: int, method: Method, generator: torch.Generator) -> _Gain:
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
        return _Gain(best.indices, best.scores)
    all_places, all_scores = torch.cat(places), torch.cat(scores)
    ((chosen, _),) = _pick(method.acquire, [(all_scores, grow)], [generator], f"acquire of {method.name}")
    return _Gain(all_places[chosen], all_scores[chosen])


def _blocks(site: Standing, want: Score) -> Iterator[tuple[int, Tensor | None, int]]:
    if "gradient" in want.needs and site.gradient is not None:
        for first, block in site.gradient.blocks():
            yield first, block, block.shape[0]
        return
    step = max(1, BLOCK_WEIGHTS // max(1, site.grid.columns)) * site.grid.columns
    for first in range(0, site.grid.units, step):
        yield first, None, min(step, site.grid.units - first)
