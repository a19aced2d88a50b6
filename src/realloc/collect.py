"""What is collected over more steps than that of a move: running means of gradients, and sums over candidates."""

from __future__ import annotations

from typing import final

from realloc.decide import candidates_of
from realloc.methods.method import Method
from realloc.methods.rank_method import RankMethod
from realloc.observe.average import Averages
from realloc.observe.candidate_sums import sums_of
from realloc.observe.gradients import CandidateGradient
from realloc.observe.ranks import Ranks
from realloc.pool.flat import FlatPool
from realloc.pool.holdings import Holdings
from realloc.pool.masked import MaskedPool
from realloc.schedule import Schedule
from realloc.stand import active_sites, finite, gradients_of, overwritten, standing_of


@final
class Collect:
    """Of one attached model. What it has collected lies in the model's buffers, so that a resume goes on with it."""

    def __init__(self, holdings: Holdings, method: Method | RankMethod, schedule: Schedule, ranks: Ranks) -> None:
        self._holdings = holdings
        self._method = method
        self._schedule = schedule
        self._ranks = ranks
        self.averages = Averages(holdings, method.average)
        self.window = method.candidates.steps  # steps before a move, and its own, whose gradients it looks at
        self._pools = [pool for pool in holdings.pools if isinstance(pool, FlatPool | MaskedPool)]
        self._sums = sums_of(holdings, method.candidates)
        self._where = {site.name: (n, i) for n, pool in enumerate(self._pools) for i, site in enumerate(pool.sites)}

    def before_move(self, step: int) -> bool:
        """Whether a step is one of those that a coming move looks at."""
        due = self._schedule.upcoming(step)
        return due is not None and due - step < self.window

    def candidates(self, name: str) -> CandidateGradient | None:
        """What was collected of a site's candidates."""
        number, index = self._where[name]
        return self._sums[number].of(index) if self._sums else None

    def take(self, step: int) -> None:
        """Take in the gradients of a step, where anything is collected in it and they are sound."""
        watching = bool(self._sums) and self.before_move(step)
        if not (watching or self.averages.active):
            return
        sites = self._holdings.sites.values()
        if not finite(self._holdings.parameters, self._ranks) or overwritten(sites, self._ranks):
            return
        active = active_sites(sites, self._ranks)
        for number, pool in enumerate(self._pools):
            found = gradients_of(pool, self._ranks)
            gradients = {name: source for name, source in found.items() if active[name]}
            self.averages.update(gradients)
            if watching and isinstance(self._method, Method):
                sums = self._sums[number]
                if not sums.steps:
                    known = [
                        standing_of(pool, s, step, self.averages.of(s.name), gradients.get(s.name), active[s.name])
                        for s in pool.sites
                    ]
                    seed = self._holdings.book.read("seed")
                    sums.begin(candidates_of(known, self._method, step=step, seed=seed, most=sums.most))
                sums.add(gradients)

    def forget(self) -> None:
        """After a decision: its candidates count no more."""
        for sums in self._sums:
            sums.forget()

    def unregister(self) -> None:
        """Take all buffers off the model."""
        self.averages.unregister()
        for sums in self._sums:
            sums.unregister()
