"""Rows that are held from their first touch: what a forward looks up, who gets a row, and whose goes back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.errors import Once, StateError, plain, warn
from realloc.ledger import Held, check
from realloc.links import Tie
from realloc.observe.closure import skipped
from realloc.observe.ranks import Ranks
from realloc.plan import Change, Plan
from realloc.pool.pairing import Pairing, Words, together
from realloc.pool.rows import KEY, Fresh, RowPool
from realloc.pool.state import restart
from realloc.record.sink import Sink, event_of
from realloc.sites.row import RowSite

SOON: Final = 10  # steps after which a table that nobody looked up is worth a word
WORDS: Final = Words("realloc_rows", "the embedding's parameters", "rows of different ids")


@final
class RowEngine:
    """Called before each look-up in training, and by the hooks of `attach`. All that a resume needs is in buffers."""

    def __init__(
        self,
        pools: tuple[RowPool, ...],
        optimizer: torch.optim.Optimizer,
        fresh: Mapping[str, Fresh],
        *,
        ranks: Ranks,
        sink: Sink | None,
    ) -> None:
        self.pools = pools
        self.optimizer = optimizer
        self.fresh = fresh
        self.ranks = ranks
        self.sink = sink
        self.followers: list[tuple[RowPool, ...]] = []
        self.tie, self.once = Tie(), Once()
        trained = [(pool.module, KEY, pool.parameter) for pool in pools]
        self.pairing = Pairing(optimizer, trained, self.stamp, WORDS)

    @property
    def budget(self) -> int:
        """Parameters of all rows that may be held."""
        return sum(pool.parameter.numel() for pool in self.pools)

    @property
    def held(self) -> int:
        """Parameters of the rows that are held."""
        return sum(pool.site.held for pool in self.pools)

    # before a look-up -------------------------------------------------------------------------------------------

    def hear(self, site: RowSite, ids: Tensor) -> None:
        """Give rows to ids that are about to be looked up in training, on any rank."""
        if self.pairing.unchecked:
            self.pairing.check()
        pool = self._pool(site)
        ids, counts = torch.unique(ids.detach(), return_counts=True)
        if ids.numel() and not 0 <= int(ids[0]) <= int(ids[-1]) < site.shape[0]:
            return  # the look-up itself says so, as it always did
        if self.ranks.several:
            ids, counts = self.ranks.union(ids, counts)
        slots, step = pool.slots_of(ids), pool.book.read("steps") + 1
        known = slots >= 0
        pool.touch(slots[known], step)
        new = ~known if site.padding is None else ~known & (ids != site.padding)
        if bool(new.any()):
            self._acquire(pool, ids[new].long(), counts[new], step)

    def _acquire(self, pool: RowPool, ids: Tensor, counts: Tensor, step: int) -> None:
        """Rows for new ids: free ones, then those touched longest ago. Rows of this step stay."""
        began = time.perf_counter()
        site, before = pool.site, pool.held
        free = pool.capacity - before
        gone = pool.idle(step)[: max(0, ids.numel() - free)] if ids.numel() > free else ids[:0]
        room = free + gone.numel()
        if ids.numel() > room:
            self._say_full(site, ids.numel() - room)
            pool.book.add("left", ids.numel() - room)
            ids = ids[counts.argsort(descending=True, stable=True)[:room]]  # the most frequent, the lower id of two
        if not ids.numel():
            return
        come, gone = ids.sort().values, gone.sort().values
        change = Change(site.name, before, before - gone.numel() + come.numel(), gone.cpu(), come.cpu())
        plan = Plan(step, (change,))
        check(plan, [Held(site.name, site.grid, pool.places().cpu())], pool.parameter.numel())
        pool.move(gone, come, step, self.optimizer, self.fresh[site.name])
        number = self.pools.index(pool)
        for copy in self.followers:
            copy[number].move(gone, come, step, None, {})
        for known in (pool, *(copy[number] for copy in self.followers)):
            known.book.add("acquired", come.numel())
            known.book.add("released", gone.numel())
        if self.sink is not None:
            seconds = time.perf_counter() - began
            self.sink.decision(event_of(plan, {site.name: before}, seconds, self.budget, self.held))

    def _pool(self, site: RowSite) -> RowPool:
        return next(pool for pool in self.pools if pool.site is site)

    # the step ---------------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's pre-hook."""
        if self.pairing.unchecked:
            self.pairing.check()

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's post-hook: after an update that was really taken."""
        if skipped(self.optimizer):
            return
        for pool in self.pools:
            if pool.parameter.requires_grad:  # else nothing below a frozen end may change, not even a count
                pool.book.add("steps")
        if self.pools[0].book.read("steps") == SOON:
            self.complain()

    # belonging together -----------------------------------------------------------------------------------------

    def stamp(self) -> int:
        """Digest of the ids of all pools."""
        return together(pool.stamp() for pool in self.pools)

    # rare acts --------------------------------------------------------------------------------------------------

    def follow(self, copy: tuple[RowPool, ...]) -> None:
        """Let a copy's rows take part in every move."""
        if [pool.stamp() for pool in copy] != [pool.stamp() for pool in self.pools]:
            raise StateError(
                "the copy holds rows of other ids than the model: it missed some. Make the copy anew and call "
                "handle.follow(copy) right after"
            )
        self.followers[:] = [known for known in self.followers if known[0].module is not copy[0].module]
        self.followers.append(copy)

    def restart_moments(self) -> None:
        """Forget the moments of every pool."""
        self.tie.require()
        for pool in self.pools:
            restart(self.optimizer, pool.parameter)
        self.pairing.write()

    def complain(self) -> None:
        """Promise P6: say it once where training looked nothing up, in a table that another method has not frozen."""
        self.tie.require()
        for pool in self.pools:
            steps = pool.book.read("steps")
            if steps >= SOON and pool.parameter.requires_grad and not pool.book.read("acquired"):
                self.once.say(
                    "RA202",
                    f"no row of {plain(pool.site.name)} was touched in {steps} steps: is this the model you train, and "
                    "are its gradients on?",
                )

    def _say_full(self, site: RowSite, left: int) -> None:
        self.once.say(
            "RA201",
            f"{plain(site.name)}: the ids of one step need more than its {site.rows:,} rows; {left:,} of them stay as "
            "the table has them in this step. Raise rows=, or take smaller batches",
        )

    def detach(self) -> None:
        """Give the plain model back."""
        self.tie.require()
        for pool in self.pools:
            pool.sure()
            if self.pairing.unchecked and self.pairing.apart:  # moments of other ids
                restart(self.optimizer, pool.parameter)
        if self.ranks.several:
            warn(
                "RA005", "detach() under DDP changes the shape of parameters that DDP synchronises: wrap the model anew"
            )
        self.tie.undo()
