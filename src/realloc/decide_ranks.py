"""One decision about ranks: what is known of the layers in, a frozen plan out. Touches no tensor of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from realloc.allocate.afford import afford
from realloc.kernels.finite import all_finite
from realloc.methods.rank_method import RankMethod
from realloc.plan import Change, Plan
from realloc.release import NotFinite
from realloc.rng import stream
from realloc.scores.held_ranks import HeldRanks, Wanted
from realloc.scores.singular import jump, recompose
from realloc.select.top_k import top_k
from realloc.sites.places import others


def decide_ranks(
    sites: Sequence[HeldRanks], method: RankMethod, *, step: int, phase: float, seed: int, target: int, last: bool
) -> Plan:
    """Decide one move for the layers of one pool.

    Args:
        sites: what is known of each.
        method: the recipe.
        step: optimizer steps taken, for the random streams.
        phase: 0 at the schedule's begin, 1 at its end.
        seed: the run's seed.
        target: parameters that may be held afterwards.
        last: whether this is the schedule's last due step.

    Returns:
        A plan whose ranks cost at most the target; what is left pays for no rank that was wanted.
    """
    try:
        if method.last_only:
            return _cut_by_singular_values(sites, step, target) if last else Plan(step, ())
        stays, thresholds = _stays(sites, method, step, phase, seed, target)
        left = target - sum(site.cost * len(mine) for site, mine in zip(sites, stays, strict=True))
        wanted = _wanted(sites, method, step, seed, left)
        gains = [[float(g) for g in mine] for mine in wanted.gains]
        counts = afford(gains, [site.cost for site in sites], max(0, left))
    except NotFinite as error:
        return Plan(step, (), skipped=str(error))
    changes = [
        _change(site, mine, count, gain, threshold)
        for site, mine, count, gain, threshold in zip(sites, stays, counts, gains, thresholds, strict=True)
    ]
    return Plan(step, tuple(changes), note=wanted.note if any(counts) else "")


def _stays(
    sites: Sequence[HeldRanks], method: RankMethod, step: int, phase: float, seed: int, target: int
) -> tuple[list[Tensor], list[float | None]]:
    """Which ranks stay, counted from 0 in each layer, and the highest score that went."""
    held = sum(site.cost * site.rank for site in sites)
    budget = min(held, target)
    if method.want is not None:
        budget -= int(method.drop(phase) * budget)
    if method.keep is None or budget == held:
        return [torch.arange(site.rank) for site in sites], [None] * len(sites)
    moving = [site for site in sites if site.active]
    idle = sum(site.cost * site.rank for site in sites if not site.active)
    scores = [_finite(method.keep.measure(s, stream(seed, "keep", s.name, step)), s, method.keep.name) for s in moving]
    ranked = [score.sort(descending=True).values.tolist() for score in scores]
    counts = afford(ranked, [site.cost for site in moving], max(0, budget - idle))
    kept = {s.name: (score, top_k(score, n)) for s, score, n in zip(moving, scores, counts, strict=True)}
    stays, thresholds = [], list[float | None]()
    for site in sites:
        score, mine = kept.get(site.name, (None, torch.arange(site.rank)))
        stays.append(mine)
        gone = None if score is None else score[others(mine, site.rank)]
        thresholds.append(None if gone is None or not gone.numel() else float(gone.max()))
    return stays, thresholds


def _wanted(sites: Sequence[HeldRanks], method: RankMethod, step: int, seed: int, left: int) -> Wanted:
    """What new ranks would gain in each layer, best first; nothing in one that took no part."""
    nothing = torch.zeros(0, dtype=torch.float64)
    active = [site for site in sites if site.active and site.room]
    if method.want is None or not active or left < min(site.cost for site in active):
        return Wanted([nothing] * len(sites))
    wanted = method.want.measure(active, [stream(seed, "acquire", site.name, step) for site in active])
    by_name = {
        site.name: _finite(gain, site, method.want.name) for site, gain in zip(active, wanted.gains, strict=True)
    }
    return Wanted([by_name.get(site.name, nothing) for site in sites], wanted.note)


def _finite(scores: Tensor, site: HeldRanks, name: str) -> Tensor:
    if not all_finite(scores):
        raise NotFinite(f"{name} scores of {site.name} are not finite")
    return scores.cpu()


def _change(site: HeldRanks, stays: Tensor, grow: int, gains: Sequence[float], threshold: float | None) -> Change:
    gone = others(stays, site.rank)
    free = torch.ones(site.cap, dtype=torch.bool)
    free[site.places] = False
    come = free.nonzero().flatten()[:grow]
    return Change(
        site.name, site.rank, site.rank - gone.numel() + grow, site.places[gone], come,
        keep_threshold=threshold,
        want_threshold=gains[grow - 1] if grow else None,
        predicted_gain=sum(gain for gain in gains[:grow] if gain > 0) * site.cost,
        jump=jump(site.a[gone], site.b[gone], site.scale) if gone.numel() else None,
    )  # fmt: skip


def _cut_by_singular_values(sites: Sequence[HeldRanks], step: int, target: int) -> Plan:
    """Write every layer's product in its singular directions and keep those worth most per parameter."""
    if sum(site.cost * site.rank for site in sites) <= target:
        return Plan(step, ())
    found = [recompose(site.a, site.b, site.scale) for site in sites]
    worth = [
        _finite(values.square() / site.cost, site, "singular value").tolist()
        for site, (values, _, _) in zip(sites, found, strict=True)
    ]
    counts = afford(worth, [site.cost for site in sites], target)
    changes = [
        Change(
            site.name, site.rank, count, site.places[count:], site.places[:0],
            keep_threshold=float(values[count]) if count < site.rank else None,
            jump=float(values[count:].norm()),
            values=torch.cat([a[:count], b[:count]], 1),
        )
        for site, count, (values, a, b) in zip(sites, counts, found, strict=True)
    ]  # fmt: skip
    return Plan(step, tuple(changes))
