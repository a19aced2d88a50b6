"""One decision: scores in, a frozen plan out. Touches no tensor of the model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from realloc.acquire import acquire, across, change_of
from realloc.allocate.room import Room, allot
from realloc.errors import StateError
from realloc.methods.method import Method
from realloc.observe.standing import Standing
from realloc.plan import Plan
from realloc.release import Drop, NotFinite, keep_scores, least_here, ranked, release
from realloc.rng import stream


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
    if method.candidates.steps > 1 and any(site.candidates is None for site in sites):
        return Plan(step, (), skipped="no candidate was measured in the steps before")
    try:
        counts = [site.places.numel() for site in sites]
        goal = target_of(sites, method, phase) if target is None else target
        keeps = [keep_scores(site, method, stream(seed, "keep", site.name, step)) for site in sites]
        if goal < sum(counts):  # one global ranking by the keep score, when the density curve falls
            counts = ranked(sites, keeps, counts, max(goal, least_of(sites)))
        generators = [stream(seed, "release", site.name, step) for site in sites]
        drops = release(sites, keeps, counts, method, phase, generators)
        del keeps
        generators = [stream(seed, "acquire", site.name, step) for site in sites]
        released = [count - drop.survivors.numel() for count, drop in zip(counts, drops, strict=True)]
        if method.across:
            gains = across(sites, drops, sum(released), method, generators)
        else:
            gains = acquire(sites, drops, _shares(sites, drops, released, method), method, generators)
        changes = tuple(
            change_of(site, drop, gain, method) for site, drop, gain in zip(sites, drops, gains, strict=True)
        )
    except NotFinite as error:
        return Plan(step, (), skipped=str(error))
    return Plan(step, changes)


def target_of(sites: Sequence[Standing], method: Method, phase: float) -> int:
    """Units that the density curve leaves to these sites: never more than they hold."""
    held = sum(site.places.numel() for site in sites)
    if method.held is None:
        return held
    return min(held, round(method.held(phase) * sum(site.grid.units for site in sites)))


def least_of(sites: Sequence[Standing]) -> int:
    """Units that pruning must leave: one a site, and all of a site that took no part."""
    return sum(least_here(site, site.places.numel()) for site in sites)


def candidates_of(sites: Sequence[Standing], method: Method, *, step: int, seed: int, most: int) -> list[Tensor]:
    """The places, at most so many in all, that are most wanted now: the candidates of a coming move."""
    generators = [stream(seed, "candidates", site.name, step) for site in sites]
    nothing = [Drop(site.places, site.places[:0], None, None) for site in sites]
    return [gain.places for gain in across(sites, nothing, most, method, generators)]


def _shares(sites: Sequence[Standing], drops: Sequence[Drop], released: Sequence[int], method: Method) -> list[int]:
    """How many units each site acquires; in all as many as were released beyond the pruning."""
    if method.want is None:
        return [0] * len(sites)
    rooms = [
        Room(
            site.name, (site.grid.rows, site.grid.columns), least=0,
            most=drop.room(site.grid, method.regrow) if site.active else 0,
            evidence=_evidence(site), released=back, shape=site.shape,
        )
        for site, drop, back in zip(sites, drops, released, strict=True)
    ]  # fmt: skip
    return allot(method.share, rooms, sum(released), f"share of {method.name}", StateError)


def _evidence(site: Standing) -> float:
    """Mean absolute running gradient over the held units: SNFS's layer contribution (1907.04840, section 3.2)."""
    if site.average is None or not site.places.numel():
        return 0.0
    return float(site.average[site.places].abs().mean())
