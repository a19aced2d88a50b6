"""What pools of widths decide, under one method: one plan for all of them, since a unit has a part in several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import final

from realloc.decide_widths import check_plan, decide_widths
from realloc.decider import Proposal
from realloc.methods.width_method import WidthMethod
from realloc.observe.neurons import add_effects, neurons_of
from realloc.observe.ranks import Ranks
from realloc.pool.holdings import Holdings
from realloc.pool.widths import WidePool
from realloc.prepare_widths import purse_of
from realloc.schedule import Schedule


@final
class WidthDecider:
    """A `Decider`. Effects are summed over the steps of its window, in a buffer of the model."""

    busy = False

    def __init__(self, holdings: Holdings, method: WidthMethod, schedule: Schedule, ranks: Ranks) -> None:
        self._holdings, self._method, self._ranks = holdings, method, ranks
        self.schedule = schedule
        self._pools = tuple(pool for pool in holdings.pools if isinstance(pool, WidePool))

    @property
    def window(self) -> int:
        """Steps before a move, its own among them, whose effects are summed."""
        return self._method.window

    def collects(self, step: int, due: int | None) -> bool:
        """Whether taps capture the backwards of a step."""
        return self._method.looks and step == due

    def take(self, step: int, due: int | None) -> None:
        """Sum the effects of a step that a coming move looks at."""
        if "worth" in self._method.needs and due is not None and due - step < self.window:
            add_effects(self._pools)

    def proposals(self, step: int, active: Mapping[str, bool]) -> Iterator[Proposal]:
        """One for all pools."""
        method, last = self._method, step >= self.schedule.last
        phase = self.schedule.phase(step)
        number = max(1, (step - self.schedule.begin) // self.schedule.n)
        groups = neurons_of(self._pools, active, step, self.window, method.needs, self._ranks.mean)
        purse = purse_of(self._pools, self._holdings.budget)
        share = method.share_at(1.0 if last else phase)
        start = self._pools[0].space.cost(self._pools[0].start, purse.currency)
        target = replace(purse, budget=min(purse.budget, round(start * share)))
        seed = self._holdings.book.read("seed")
        plan = decide_widths(groups, method, target, step=step, phase=phase, number=number, seed=seed)
        yield Proposal(plan, partial(check_plan, groups=groups, purse=purse))

    def forget(self) -> None:
        """After a decision: sums begin anew."""
        self._pools[0].forget()

    def unregister(self) -> None:
        """The buffers go with their pools."""
