"""What pools of weights decide: packed, masked or delta, under one method and one density curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import final

from realloc.allocate.apportion import apportion
from realloc.collect import Collect
from realloc.decide import decide, least_of, target_of
from realloc.decider import Proposal
from realloc.ledger import check
from realloc.methods.method import Method
from realloc.observe.ranks import Ranks
from realloc.pool.holdings import Holdings
from realloc.schedule import Schedule
from realloc.stand import gradients_of


@final
class WeightDecider:
    """A `Decider`. Each pool gets a plan of its own; what the density curve leaves is shared among the pools."""

    def __init__(self, holdings: Holdings, method: Method, schedule: Schedule, ranks: Ranks) -> None:
        self._holdings, self._method, self._ranks = holdings, method, ranks
        self.schedule = schedule
        self._collect = Collect(holdings, method, ranks)
        self.window = method.candidates.steps
        self.busy = self._collect.averages.active or self._collect.impressions.active

    def collects(self, step: int, due: int | None) -> bool:
        """Whether taps capture the backwards of a step."""
        averages = self._collect.averages.active and due is not None
        return averages or (self._method.looks and self._looked_at(step, due))

    def _looked_at(self, step: int, due: int | None) -> bool:
        """Whether a step is one of those that a coming move looks at."""
        return due is not None and due - step < self.window

    def take(self, step: int, due: int | None) -> None:
        """Take in what a step showed."""
        self._collect.take(step, looked_at=self._looked_at(step, due), goes_on=due is not None)

    def proposals(self, step: int, active: Mapping[str, bool]) -> Iterator[Proposal]:
        """One a pool."""
        method = self._method
        self._collect.impressions.fold(step)
        known = []
        for pool in self._collect.pools:
            gradients = gradients_of(pool, self._ranks) if method.looks else {}
            known.append(self._collect.standings(pool, step, gradients, active))
        seed, phase = self._holdings.book.read("seed"), self.schedule.phase(step)
        held = [sum(site.places.numel() for site in mine) for mine in known]
        least = [least_of(mine) for mine in known]
        ends = step >= self.schedule.last  # a falling density arrives, though ``until`` may lie between two moves
        total = target_of([site for mine in known for site in mine], method, 1.0 if ends else phase)
        phase = 1.0 if ends and method.settles else phase
        targets = apportion(held, max(total, sum(least)), least, held)  # a falling density is shared among the pools
        for pool, mine, target in zip(self._collect.pools, known, targets, strict=True):
            plan = decide(mine, method, step=step, phase=phase, seed=seed, target=target)
            yield Proposal(plan, partial(check, accounts=mine, capacity=pool.capacity * pool.unit_size))

    def forget(self) -> None:
        """Candidates count no more."""
        self._collect.forget()

    def unregister(self) -> None:
        """Take all buffers off the model."""
        self._collect.unregister()
