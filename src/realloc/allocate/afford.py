"""Sharing a budget among units of different cost: exact integers, and what fits no unit is left over (parked)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from realloc.allocate.apportion import apportion
from realloc.errors import ConfigError, StateError


def afford(scores: Sequence[Sequence[float]], costs: Sequence[int], budget: int) -> tuple[int, ...]:
    """How many of its best units each site gets, best score first over all sites, as long as the budget pays.

    A unit that the rest does not pay for is passed over, and cheaper ones behind it are looked at: what is left over
    at the end is less than the cost of any unit that was left out. Scores of sites with different costs are only
    comparable per cost; divide first. Ties go to the earlier site.

    Args:
        scores: for each site, the scores of its units, best first.
        costs: what one unit of each site costs, 1 or more.
        budget: what may be spent, 0 or more.

    Raises:
        StateError: a score that is NaN, or scores that do not fall.

    >>> afford([[9.0, 1.0], [5.0, 4.0]], costs=[30, 10], budget=45)
    (1, 1)
    """
    counts = [0] * len(scores)
    for mine in scores:
        if any(math.isnan(score) for score in mine) or any(a < b for a, b in pairwise(mine)):
            raise StateError("scores must fall from a site's best unit on, without NaN; skip this move")
    heap = [(-mine[0], site) for site, mine in enumerate(scores) if mine]
    heapq.heapify(heap)
    while heap:
        _, site = heapq.heappop(heap)
        if costs[site] > budget:
            continue  # nor is any other unit of this site paid for: the rest only falls
        budget -= costs[site]
        counts[site] += 1
        if counts[site] < len(scores[site]):
            heapq.heappush(heap, (-scores[site][counts[site]], site))
    return tuple(counts)


def level(
    weights: Sequence[float], costs: Sequence[int], budget: int, least: Sequence[int], most: Sequence[int]
) -> tuple[int, ...]:
    """Give each site units in proportion to its weight, whatever they cost, within bounds; never above the budget.

    The shares in slots are exact (`apportion`), rounded down to whole units; then one unit more goes to the site that
    got least of its share, as long as one is paid for. With equal weights every site gets the same number of units.

    Args:
        weights: finite, not negative; units, not slots, are in proportion to them.
        costs: what one unit of each site costs.
        budget: what may be spent.
        least: fewest units of each site; the budget must pay for them.
        most: greatest number of each.

    Raises:
        ConfigError: a budget that does not pay for ``least``.

    >>> level([1, 1, 1], costs=[10, 10, 40], budget=135, least=[0, 0, 0], most=[9, 9, 9])
    (3, 2, 2)
    """
    low = [n * cost for n, cost in zip(least, costs, strict=True)]
    high = [n * cost for n, cost in zip(most, costs, strict=True)]
    if budget < sum(low):
        raise ConfigError(f"budget={budget} does not pay for the {sum(low)} that the sites need at least")
    slots = [float(w) * cost for w, cost in zip(weights, costs, strict=True)]
    shares = apportion(slots, min(budget, sum(high)), low, high)
    counts = [share // cost for share, cost in zip(shares, costs, strict=True)]
    rest = budget - sum(n * cost for n, cost in zip(counts, costs, strict=True))
    while True:
        open_sites = [
            (Fraction(n * cost - share, cost), i)
            for i, (n, cost, share) in enumerate(zip(counts, costs, shares, strict=True))
            if n < most[i] and cost <= rest and weights[i] > 0
        ]
        if not open_sites:
            return tuple(counts)
        site = min(open_sites)[1]
        counts[site] += 1
        rest -= costs[site]
