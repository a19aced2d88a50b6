"""What is collected over more steps than that of a move: means of gradients, sums over candidates, impressions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from realloc.decide import candidates_of
from realloc.methods.method import Method
from realloc.observe.average import Averages
from realloc.observe.candidate_sums import sums_of
from realloc.observe.gradients import GradientSource
from realloc.observe.impressions import Impressions
from realloc.observe.ranks import Ranks
from realloc.observe.standing import Standing
from realloc.pool.flat import FlatPool
from realloc.pool.holdings import Holdings
from realloc.pool.masked import MaskedPool
from realloc.stand import active_sites, finite, gradients_of, overwritten, standing_of


@final
class Collect:
    """Of one attached model. What it has collected lies in the model's buffers, so that a resume goes on with it."""

    def __init__(self, holdings: Holdings, method: Method, ranks: Ranks) -> None:
        self._holdings = holdings
        self._method = method
        self._ranks = ranks
        self.averages = Averages(holdings, method.average)
        self.impressions = Impressions(holdings, method.impressions)
        self.pools = [pool for pool in holdings.pools if isinstance(pool, FlatPool | MaskedPool)]
        self._sums = sums_of(holdings, method.candidates)
        names = [[site.name for site in pool.sites] for pool in self.pools]
        self._where = {name: (number, i) for number, mine in enumerate(names) for i, name in enumerate(mine)}

    def standings(
        self,
        pool: FlatPool | MaskedPool,
        step: int,
        gradients: Mapping[str, GradientSource],
        active: Mapping[str, bool],
    ) -> list[Standing]:
        """What a decision at a step may know of the sites of a pool."""
        found = []
        for site in pool.sites:
            number, index = self._where[site.name]
            candidates = self._sums[number].of(index) if self._sums else None
            average, gradient = self.averages.of(site.name), gradients.get(site.name)
            seen = self.impressions.of(site)
            found.append(standing_of(pool, site, step, average, gradient, active[site.name], candidates, seen))
        return found

    def take(self, step: int, *, looked_at: bool, goes_on: bool) -> None:
        """Take in the gradients of a step, where anything is collected in it and they are sound.

        Args:
            step: that was taken.
            looked_at: whether a coming move looks at it.
            goes_on: whether another decision comes.
        """
        watching, summing = looked_at and bool(self._sums), goes_on and self.impressions.active
        if not (watching or summing or self.averages.active):
            return
        sites = self._holdings.sites.values()
        if not finite(self._holdings.parameters, self._ranks) or overwritten(sites, self._ranks):
            return
        active = active_sites(sites, self._ranks)
        if not any(active.values()):
            return
        if summing:
            self.impressions.add()
        for number, pool in enumerate(self.pools if watching or self.averages.active else ()):
            found = gradients_of(pool, self._ranks)
            gradients = {name: source for name, source in found.items() if active[name]}
            self.averages.update(gradients)
            if watching:
                sums = self._sums[number]
                if not sums.steps:
                    known, seed = self.standings(pool, step, gradients, active), self._holdings.book.read("seed")
                    sums.begin(candidates_of(known, self._method, step=step, seed=seed, most=sums.most))
                sums.add(gradients)

    def forget(self) -> None:
        """After a decision: its candidates count no more."""
        for sums in self._sums:
            sums.forget()

    def unregister(self) -> None:
        """Take all buffers off the model."""
        self.averages.unregister()
        self.impressions.unregister()
        for sums in self._sums:
            sums.unregister()
