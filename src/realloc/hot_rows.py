"""Rows that go to hot ids: what a backward says of ids, the order of one step, and what a decision does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.decide_hot_rows import decide_hot_rows
from realloc.errors import Once, StateError, plain
from realloc.ledger import Held, check
from realloc.links import Tie
from realloc.methods.hot_row_method import HotRowMethod
from realloc.observe.closure import skipped
from realloc.observe.ranks import Ranks
from realloc.plan import Change, Plan
from realloc.pool.hot_rows import HotRows
from realloc.pool.state import restart
from realloc.record.sink import Sink, event_of
from realloc.schedule import Schedule
from realloc.scores.row_score import RowStep
from realloc.sites.grid import Grid

MARK: Final = "realloc_hot_rows"  # of an optimizer group: the digest of the owners that its moments belong to
IDS: Final = 2**63  # of a table, at most
APART: Final = (
    "model and optimizer hold rows of different ids: one was loaded without the other. Load both, or call "
    "handle.restart_moments() to go on with new moments"
)


@final
@dataclass(frozen=True, eq=False)
class Noted:
    """Ids of one look-up whose gradient came, each once."""

    table: int
    ids: Tensor  # int64 [n], ascending
    numbers: Tensor  # float64 [n, 2 + dim]: occurrences, the norms of their gradients, the gradient summed


@final
class HotRowEngine:
    """Called by the look-ups of attached layers and by the hooks of `attach`. What a resume needs is in buffers."""

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
        self.pools, self.names = pools, names  # names of tables by (pool, table)
        self.optimizer, self.method, self.schedule = optimizer, method, schedule
        self.sink, self.ranks = sink, ranks
        self.recent: deque[Plan] = deque(maxlen=256)
        self.tie, self.once = Tie(), Once()
        self.unchecked = True  # whether something was loaded since model and optimizer were last compared
        self._pending: tuple[list[Noted], ...] = tuple([] for _ in pools)

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

    @torch.no_grad()
    def note(self, number: int, table: int, ids: Tensor, gradient: Tensor) -> None:
        """The gradient of what was looked up: ``[..., dim]`` for ids ``[...]``; negative ids are padding."""
        if not self._looks(self.pools[number]):
            return
        flat, rows = ids.reshape(-1).long().cpu(), gradient.detach().reshape(ids.numel(), -1).double().cpu()
        real = flat >= 0
        if not bool(real.all()):
            flat, rows = flat[real], rows[real]
        found, where = torch.unique(flat, return_inverse=True)
        numbers = rows.new_zeros(len(found), 2 + rows.shape[1])
        numbers[:, 0] = where.bincount(minlength=len(found))
        numbers[:, 1] = rows.new_zeros(len(found)).index_add(0, where, torch.linalg.vector_norm(rows, dim=1))
        numbers[:, 2:] = rows.new_zeros(len(found), rows.shape[1]).index_add(0, where, rows)
        self._pending[number].append(Noted(table, found, numbers))

    def _looks(self, pool: HotRows) -> bool:
        """Whether the step that is under way is noted."""
        return pool.book.read("steps") % self.method.look == 0

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's pre-hook."""
        if self.unchecked:
            self.check()

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's post-hook: after an update that was really taken."""
        pending, self._pending = self._pending, tuple([] for _ in self.pools)
        if skipped(self.optimizer):
            return
        for pool, noted in zip(self.pools, pending, strict=True):
            if self._looks(pool):  # on every rank, or on none: they gather
                self._take(pool, noted)
        steps = [pool.book.add("steps") for pool in self.pools]
        if self.schedule.due(steps[0]):
            for number in range(len(self.pools)):
                self._move(number, steps[0])
            self.mark()

    def _take(self, pool: HotRows, noted: list[Noted]) -> None:
        """Add up look-ups, micro-batches and ranks, in their order, and let the sketch have them."""
        width = 2 + pool.store.dim
        none = torch.zeros(0, 2, dtype=torch.int64)
        keys = torch.cat([none, *(torch.stack([torch.full_like(n.ids, n.table), n.ids], 1) for n in noted)])
        numbers = torch.cat([torch.zeros(0, width, dtype=torch.float64), *(n.numbers for n in noted)])
        if not self.ranks.largest([len(keys)])[0]:
            return
        keys, numbers = self.ranks.rows(keys), self.ranks.rows(numbers)
        if not bool(numbers.isfinite().all()):
            self.once.say("RA001", f"a gradient of {self._tables(pool)} is NaN or Inf: nothing of that step is noted")
            return
        step, tables, ids = [], [], []
        for table in range(len(pool.store.enrolled)):
            mine = keys[:, 0] == table
            found, where = torch.unique(keys[mine, 1], return_inverse=True)
            step.append(numbers.new_zeros(len(found), width).index_add(0, where, numbers[mine]))
            tables.append(torch.full_like(found, table, dtype=torch.int32))
            ids.append(found)
        counts, norms, sums = torch.split(torch.cat(step), [1, 1, width - 2], 1)
        known = RowStep(counts[:, 0], norms[:, 0] / self.ranks.count, sums / self.ranks.count)
        pool.take(torch.cat(tables), torch.cat(ids), known, self.method.score)

    # the decision -----------------------------------------------------------------------------------------------

    def _move(self, number: int, step: int) -> None:
        began, pool = time.perf_counter(), self.pools[number]
        tables = {table: name for (n, table), name in self.names.items() if n == number}
        before = {name: len(pool.owned_by(table)) for table, name in tables.items()}
        plan = decide_hot_rows(pool, tables, self.method, step)
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
        pool = self.pools[number]
        dim, tables = pool.store.dim, {name: table for (n, table), name in self.names.items() if n == number}
        if not plan.moves_anything:
            return plan
        grid = Grid(IDS, dim, 1, dim)
        held = [Held(name, grid, pool.owned_by(table)) for name, table in tables.items()]
        check(plan, held, pool.store.split.own * dim)
        released = [(tables[c.site], c.released) for c in plan.changes]
        acquired = [(tables[c.site], c.acquired) for c in plan.changes]
        jumps = pool.move(released, acquired, self.optimizer, self.method.migrate)
        pool.book.add("promoted", sum(c.acquired.numel() for c in plan.changes))
        pool.book.add("demoted", sum(c.released.numel() for c in plan.changes))
        pool.book.add("moves")
        changes = tuple(
            Change(
                c.site, c.before, c.after, c.released, c.acquired, c.keep_threshold, c.want_threshold,
                c.predicted_gain, jump=jumps[tables[c.site]],
            )
            for c in plan.changes
        )  # fmt: skip
        return Plan(plan.step, changes, note=plan.note)

    def _tables(self, pool: HotRows) -> str:
        number = self.pools.index(pool)
        return ", ".join(plain(name) for (n, _), name in self.names.items() if n == number)

    # belonging together -----------------------------------------------------------------------------------------

    def stamp(self) -> int:
        """Digest of who owns which row."""
        found = 0
        for pool in self.pools:
            found = (found * 1_000_003 + pool.stamp) % 2**62
        return found

    def mark(self) -> None:
        """Write into the optimizer which owners its moments belong to; never over what was loaded and not compared."""
        if not self.unchecked:
            stamp, mine = self.stamp(), {id(pool.store.weight) for pool in self.pools}
            for group in self.optimizer.param_groups:
                if any(id(p) in mine for p in group["params"]):
                    group[MARK] = stamp

    def check(self) -> None:
        """Refuse a model and an optimizer that do not belong together.

        Raises:
            StateError: one was loaded without the other.
        """
        stamp = self.stamp()
        if any(group.get(MARK, stamp) != stamp for group in self.optimizer.param_groups):
            raise StateError(APART)
        self.unchecked = False
        self.mark()

    def restart_moments(self) -> None:
        """Forget the optimizer's state of all rows."""
        self.tie.require()
        for pool in self.pools:
            restart(self.optimizer, pool.store.weight)
        self.unchecked = False
        self.mark()

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
            for group in self.optimizer.param_groups:
                group.pop(MARK, None)
            for pool in self.pools:
                pool.book.write("begun", 0)
