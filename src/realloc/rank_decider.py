"""What pools of LoRA ranks decide, under one method; their sensitivities are measured in every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final, final

from realloc.decide_ranks import decide_ranks
from realloc.decider import Proposal
from realloc.ledger import Held, check
from realloc.methods.rank_method import RankMethod
from realloc.observe.ranks import Ranks
from realloc.pool.holdings import Holdings
from realloc.pool.ranks import RankPool
from realloc.schedule import Schedule
from realloc.stand import ranks_standing_of


@final
class RankDecider:
    """A `Decider`. Each pool gets a plan of its own, for its part of the budget."""

    window: Final = 1

    def __init__(self, holdings: Holdings, method: RankMethod, schedule: Schedule, ranks: Ranks) -> None:
        self._holdings, self._method, self._ranks = holdings, method, ranks
        self.schedule = schedule
        self._pools = tuple(pool for pool in holdings.pools if isinstance(pool, RankPool))
        self.busy = method.betas is not None

    def collects(self, step: int, due: int | None) -> bool:
        """Whether taps capture the backwards of a step."""
        return self._method.looks and step == due

    def take(self, step: int, due: int | None) -> None:
        """Take in the sensitivities of a step."""
        if self._method.betas is not None:
            for pool in self._pools:
                pool.measure(self._method.betas)

    def proposals(self, step: int, active: Mapping[str, bool]) -> Iterator[Proposal]:
        """One a pool."""
        method, phase, last = self._method, self.schedule.phase(step), step >= self.schedule.last
        share, seed = method.share(1.0 if last else phase), self._holdings.book.read("seed")
        for pool in self._pools:
            sites = [ranks_standing_of(pool, site, self._ranks, active[site.name]) for site in pool.sites]
            # narrow layers, or a compacted pool, have less room than the curve may ask for
            target = min(pool.capacity, round(pool.budget * share))
            plan = decide_ranks(sites, method, step=step, phase=phase, seed=seed, target=target, last=last)
            held = [Held(s.name, s.grid, known.places) for s, known in zip(pool.sites, sites, strict=True)]
            yield Proposal(plan, partial(check, accounts=held, capacity=pool.capacity * pool.unit_size))

    def forget(self) -> None:
        """Nothing is collected for one move alone."""

    def unregister(self) -> None:
        """The running means go with their pool."""
