"""Rows that go to hot ids: what a backward says of ids, the order of one step, and what a decision does."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.decide_hot_rows import decide_hot_rows
from realloc.errors import Once, StateError, plain
from realloc.kernels.seek import Noted, tally
from realloc.ledger import Held, check
from realloc.links import Tie
from realloc.methods.hot_row_method import HotRowMethod
from realloc.nn.rows import Rows
from realloc.observe.closure import skipped
from realloc.observe.heard import Heard, by_table, everyones
from realloc.observe.ranks import Ranks
from realloc.plan import Plan
from realloc.pool.hot_rows import HotRows, owners_of
from realloc.pool.pairing import Pairing, Words, together
from realloc.pool.state import restart
from realloc.record.sink import Sink, event_of
from realloc.schedule import Schedule
from realloc.sites.grid import Grid

IDS: Final = 2**63  # of a table, at most
COPY_APART: Final = (
    "an averaged copy that follows this model has rows of other ids: one was loaded without the other. Load both, or "
    "make the copy anew and call handle.follow(copy)"
)
WORDS: Final = Words("realloc_hot_rows", "the rows", "rows of different ids")


@final
class HotRowEngine:
    """Called by the look-ups of attached layers and by the hooks of `attach`. What a resume needs is in buffers.

    Raises:
        ConfigError: a store has a row for each id of its tables.
    """

    def __init__(
        self,
        pools: tuple[HotRows, ...],
        names: Mapping[tuple[int, int], str],
        optimizer: torch.optim.Optimizer,
        method: HotRowMethod,
        schedule: Schedule,
        sink: Sink | None,
        ranks: Ranks,
    ) -> None:
        for pool in pools:
            pool.store.check_tables()
        self.pools, self.names = pools, names  # names of tables by (pool, table)
        self._tables = [{name: table for (n, table), name in names.items() if n == p} for p in range(len(pools))]
        self.optimizer, self.method, self.schedule = optimizer, method, schedule
        self.sink, self.ranks = sink, ranks
        self.recent: deque[Plan] = deque(maxlen=256)
        self.tie, self.once = Tie(), Once()
        self.heard = tuple(Heard(pool.store.weight) for pool in pools)
        self.followers: list[tuple[Rows, ...]] = []
        trained = [(pool.store, "weight", pool.store.weight) for pool in pools]
        self.pairing = Pairing(optimizer, trained, self.stamp, WORDS)

    # numbers ----------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """Bytes of all stores."""
        return sum(pool.store.budget for pool in self.pools)

    @property
    def held(self) -> int:
        """Bytes of what is held."""
        return sum(pool.store.held for pool in self.pools)

    def next_due(self) -> int | None:
        """The step after which the next decision is due."""
        return self.schedule.upcoming(self.pools[0].book.read("steps") + 1) if self.tie.attached else None

    # the step ---------------------------------------------------------------------------------------------------

    def note(self, number: int, table: int, ids: Tensor, gradient: Tensor) -> None:
        """The gradient of what was looked up: ``[..., dim]`` for ids ``[...]``; negative ids are padding."""
        if self.looks(number):
            self.heard[number].note(tally(table, ids, gradient, self.method.score.needs_sums))

    def looks(self, number: int) -> bool:
        """Whether the step that is under way is noted: not where no decision comes after it."""
        book, schedule = self.pools[number].book, self.schedule
        steps = book.read("steps")
        return steps < schedule.last and self.method.looks(steps, schedule.n, book.read("seed"))

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's pre-hook."""
        if self.pairing.unchecked:
            self.check()

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's post-hook: after an update that was really taken."""
        noted = [heard.take() for heard in self.heard]
        if skipped(self.optimizer):
            return
        for number, (pool, some) in enumerate(zip(self.pools, noted, strict=True)):
            if self.looks(number):  # on every rank, or on none: they gather
                self._take(pool, some)
        steps = [pool.book.count() for pool in self.pools]
        if self.schedule.due(steps[0]):
            for number in range(len(self.pools)):
                self._move(number, steps[0])
            self.pairing.renew()

    def _take(self, pool: HotRows, noted: list[Noted]) -> None:
        """Add up look-ups, micro-batches and ranks, in their order, and let the sketch have them."""
        noted = by_table(noted)
        if self.ranks.several:
            width = 2 + pool.store.dim * self.method.score.needs_sums
            noted = everyones(noted, width, len(pool.store.enrolled), self.ranks)
        if not noted:
            return
        numbers = torch.cat([one.numbers for one in noted]) if len(noted) > 1 else noted[0].numbers
        if not math.isfinite(float(numbers[:, 1].sum())):  # a norm is no number where anything of the gradient is none
            tables = ", ".join(plain(name) or "the embedding" for name in self._tables[self.pools.index(pool)])
            self.once.say("RA001", f"a gradient of {tables} is NaN or Inf: nothing of that step is noted")
            return
        if numbers.numel():
            pool.take(noted, numbers, self.ranks.count, self.method.score)

    # the decision -----------------------------------------------------------------------------------------------

    def _move(self, number: int, step: int) -> None:
        began, pool = time.perf_counter(), self.pools[number]
        tables = self._tables[number]
        before = {name: len(pool.owned_by(table)) for name, table in tables.items()}
        plan = decide_hot_rows(pool, {table: name for name, table in tables.items()}, self.method, step)
        if self.ranks.several:
            plan = self.ranks.agree(plan, pool.whole_stamp)
        if plan.skipped is not None:
            self.once.say("RA203", plan.skipped)
        plan = self.apply(number, plan)
        pool.decay(self.method.decay)
        pool.book.write("seen", 0)
        self.recent.append(plan)
        if self.sink is not None:
            seconds = time.perf_counter() - began
            self.sink.decision(event_of(plan, before, seconds, pool.store.budget, pool.store.held))

    def apply(self, number: int, plan: Plan) -> Plan:
        """Check the plan against the ledger and make it; returns it with its jumps."""
        pool, tables = self.pools[number], self._tables[number]
        if not plan.moves_anything:
            return plan
        dim = pool.store.dim
        grid = Grid(IDS, dim, 1, dim)
        held = [Held(name, grid, pool.owned_by(table)) for name, table in tables.items()]
        check(plan, held, pool.store.split.own * dim)
        released = [(tables[c.site], c.released) for c in plan.changes]
        acquired = [(tables[c.site], c.acquired) for c in plan.changes]
        self._check_followers()
        copies = [copy[number] for copy in self.followers]
        jumps = pool.move(released, acquired, self.optimizer, self.method.migrate, copies)
        pool.book.add("promoted", sum(c.acquired.numel() for c in plan.changes))
        pool.book.add("demoted", sum(c.released.numel() for c in plan.changes))
        pool.book.add("moves")
        return replace(plan, changes=tuple(replace(c, jump=jumps[tables[c.site]]) for c in plan.changes))

    # belonging together -----------------------------------------------------------------------------------------

    def stamp(self) -> int:
        """Digest of who owns which row."""
        return together(pool.stamp for pool in self.pools)

    def check(self) -> None:
        """Refuse a model, an optimizer and copies that do not belong together."""
        self._check_followers()
        self.pairing.check()
        self.pairing.write()

    def restart_moments(self) -> None:
        """Forget the optimizer's state of all rows."""
        self.tie.require()
        for pool in self.pools:
            restart(self.optimizer, pool.store.weight)
        self.pairing.unchecked = False
        self.pairing.write()

    def follow(self, copy: tuple[Rows, ...]) -> None:
        """Let a copy's rows take part in every move."""
        self.followers[:] = [known for known in self.followers if known[0] is not copy[0]]
        self.followers.append(copy)
        try:
            self._check_followers()
        except StateError:
            self.followers.pop()
            raise

    def _check_followers(self) -> None:
        for copy in self.followers:
            mine = [pool.store for pool in self.pools]
            if any(owners_of(a) != owners_of(b) for a, b in zip(mine, copy, strict=True)):
                raise StateError(COPY_APART)

    def reschedule(self, schedule: Schedule) -> None:
        """Decide by another schedule from now on."""
        self.tie.require()
        self.schedule = schedule

    # words ------------------------------------------------------------------------------------------------------

    def complain(self) -> None:
        """Promise P6: say it once where the schedule ran to its end and no row moved."""
        steps = self.pools[0].book.read("steps") if self.tie.attached else 0
        if steps >= self.schedule.last and not any(pool.book.read("moves") for pool in self.pools):
            self.once.say("RA003", f"no row has moved in {steps} steps; see handle.explain(id)")

    def detach(self) -> None:
        """Take the hooks off; rows stay with their ids. A second call does nothing."""
        self.complain()
        if self.tie.attached:
            self.tie.undo()
            self.pairing.wipe()
            for pool in self.pools:
                pool.book.write("begun", 0)
