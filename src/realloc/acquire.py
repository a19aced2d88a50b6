"""The second half of a decision: rank what is not held, and say what comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from realloc.kernels.search import locate
from realloc.methods.method import Method
from realloc.observe.gradients import BLOCK_WEIGHTS
from realloc.observe.standing import Standing
from realloc.plan import Change
from realloc.release import Drop, finite
from realloc.scores.score import Score
from realloc.select.pick import pick
from realloc.select.streaming import best_across, best_of
from realloc.select.top_k import top_k
from realloc.sites.places import among


@final
@dataclass(frozen=True, eq=False)
class Gain:
    """Places that a site may acquire, or does, ascending, and what each is wanted for."""

    places: Tensor
    wants: Tensor


def acquire(
    sites: Sequence[Standing],
    drops: Sequence[Drop],
    grows: Sequence[int],
    method: Method,
    generators: Sequence[torch.Generator],
) -> list[Gain]:
    """What each site acquires: of its candidates, or of every free place."""
    gains = [Gain(site.places[:0], torch.empty(0)) for site in sites]
    growing = [i for i, grow in enumerate(grows) if grow and method.want is not None]
    few = [i for i in growing if drops[i].candidates is not None]
    scored = [_among(sites[i], drops[i], method, generators[i]) for i in few]
    cases = [(gain.wants, grows[i]) for i, gain in zip(few, scored, strict=True)]
    picked = pick(method.acquire, cases, [generators[i] for i in few], f"acquire of {method.name}")
    for i, gain, (chosen, _) in zip(few, scored, picked, strict=True):
        gains[i] = Gain(gain.places[chosen], gain.wants[chosen])
    for i in growing:
        if drops[i].candidates is None:
            gains[i] = _anywhere(sites[i], drops[i], grows[i], method, generators[i])
    return gains


def change_of(site: Standing, drop: Drop, gain: Gain, method: Method) -> Change:
    """What the move does to one site: what went and what came, less what came back at once."""
    before = site.places.numel()
    released, come, wants = drop.released, gain.places, gain.wants
    if drop.candidates is None and method.regrow:  # a unit may have come back at once
        back = among(come, released)
        released = released[~among(released, come)]
        come, wants = come[~back], wants[~back]
    gradient = _seeds(site, come) if method.moments == "seed" else None
    lost = site.values[locate(site.places, released)] if released.numel() else None
    return Change(
        site.name, before, before - released.numel() + come.numel(), released, come,
        keep_threshold=drop.threshold,
        want_threshold=float(gain.wants.min()) if gain.wants.numel() else None,
        predicted_gain=float(wants.sum()),
        gradient=gradient,
        jump=None if lost is None else float(lost.double().norm()),
    )  # fmt: skip


def _seeds(site: Standing, come: Tensor) -> Tensor | None:
    """What the second moments of new units start from: the gradient's size, over all the steps that were looked at."""
    if site.candidates is not None:
        return site.candidates.size_at(come)
    return None if site.gradient is None else site.gradient.at(come)


def _among(site: Standing, drop: Drop, method: Method, generator: torch.Generator) -> Gain:
    """Score a drawn candidate set: only its own gradient is ever computed."""
    want, candidates = method.want, drop.candidates
    assert want is not None and candidates is not None
    source = site.gradient if site.candidates is None else site.candidates
    gradient = source.at(candidates) if "gradient" in want.needs and source is not None else None
    seen = site.seen_elsewhere(candidates, drop.survivors, generator, gradient)
    return Gain(candidates, finite(want(seen), site, want))


def _anywhere(site: Standing, drop: Drop, grow: int, method: Method, generator: torch.Generator) -> Gain:
    """Acquire from every place that is free, a block of rows at a time."""
    if method.acquire is top_k:
        best = best_of(((gain.wants, gain.places) for gain in _free(site, drop, method, generator)), grow)
        return Gain(best.indices, best.scores)
    found = [*_free(site, drop, method, generator)]
    places, wants = torch.cat([gain.places for gain in found]), torch.cat([gain.wants for gain in found])
    ((chosen, _),) = pick(method.acquire, [(wants, grow)], [generator], f"acquire of {method.name}")
    return Gain(places[chosen], wants[chosen])


def across(
    sites: Sequence[Standing],
    drops: Sequence[Drop],
    count: int,
    method: Method,
    generators: Sequence[torch.Generator],
) -> list[Gain]:
    """The most wanted places over all sites, so many in all, or all there are: the sites lie one after the other."""

    def offers() -> Iterator[tuple[int, Tensor, Tensor]]:
        for number, (site, drop, generator) in enumerate(zip(sites, drops, generators, strict=True)):
            if site.active and count:
                few = drop.candidates is not None
                for gain in [_among(site, drop, method, generator)] if few else _free(site, drop, method, generator):
                    yield number, gain.wants.cpu(), gain.places.cpu()

    found = best_across([site.grid.units for site in sites], offers(), count)
    return [Gain(best.indices.to(site.places.device), best.scores) for site, best in zip(sites, found, strict=True)]


def _free(site: Standing, drop: Drop, method: Method, generator: torch.Generator) -> Iterator[Gain]:
    """Every place that is free, a block of rows at a time."""
    want = method.want
    assert want is not None
    barred = drop.survivors if method.regrow else site.places
    for first, gradient, count in _blocks(site, want):
        here = torch.ones(count, dtype=torch.bool)
        low, high = torch.searchsorted(barred, torch.tensor([first, first + count])).tolist()
        here[barred[low:high] - first] = False
        inside = here.nonzero().flatten()
        if inside.numel():
            block = inside + first
            seen = site.seen_elsewhere(block, drop.survivors, generator, None if gradient is None else gradient[inside])
            yield Gain(block, finite(want(seen), site, want))


def _blocks(site: Standing, want: Score) -> Iterator[tuple[int, Tensor | None, int]]:
    if "gradient" in want.needs and site.gradient is not None:
        for first, block in site.gradient.blocks():
            yield first, block, block.shape[0]
        return
    step = max(1, BLOCK_WEIGHTS // max(1, site.grid.columns)) * site.grid.columns
    for first in range(0, site.grid.units, step):
        yield first, None, min(step, site.grid.units - first)
