"""The flow of one optimizer step: what took part, the guard, the count, the decision, the move, the record."""

from __future__ import annotations

import sys
import time
import weakref
from collections import deque
from operator import attrgetter
from typing import Any, final

from torch import nn

from realloc.apply import Target, apply
from realloc.complaints import Complaints
from realloc.decider import Decider, Recipe
from realloc.errors import StateError, warn
from realloc.ledger import Entry
from realloc.links import Tie
from realloc.observe.backwards import Backwards
from realloc.observe.closure import skipped, with_gradients
from realloc.observe.ranks import Ranks
from realloc.plan import Note, Plan, notes_of
from realloc.pool.compact import compact, needed
from realloc.pool.guard import Guard
from realloc.pool.holdings import Holdings, rewriting
from realloc.pool.state import restart
from realloc.record.sink import Sink, event_of
from realloc.schedule import Schedule
from realloc.sites.masked import MaskedSite
from realloc.stand import active_sites, finite, overwritten

COPY_APART = (
    "an averaged copy that follows this model holds another placement: one was loaded without the other. "
    "Load both, or make the copy anew and call handle.follow(copy)"
)
BY_HAND = (
    "the gradient is not of a backward() of this step (set by hand, from torch.autograd.grad, or stepped on twice); "
    "{} measure in backward(): call it{}"
)
_complete = attrgetter("complete")


@final
class Engine:
    """Called by the hooks of `attach`; calls decider, ledger, apply, record. Keeps no state that a resume needs."""

    def __init__(
        self,
        target: Target,
        method: Recipe,
        decider: Decider,
        *,
        ranks: Ranks,
        sink: Sink | None,
        old: dict[str, weakref.ref[nn.Parameter]],
    ) -> None:
        self.target = target
        self.method = method
        self.ranks = ranks
        self.sink = sink
        self.recent: deque[Note] = deque(maxlen=1024)
        self.tie = Tie()
        self._guard = Guard(method.young)
        self._decider = decider
        self.complaints = Complaints(old, target.holdings)
        self._active: dict[str, bool] = {}
        self._quiet = 0
        self._plain = False  # whether a step in which every site had its one backward needs no look before its update
        self._count = target.holdings.book.count
        self.pairing = target.pairing
        self._several = ranks.several
        flats, masked = target.holdings.flats, target.holdings.masked
        self.backwards = tuple(map(Backwards, flats))
        self._masked = () if masked is None else masked.sites
        self.arm()

    @property
    def holdings(self) -> Holdings:
        """What the model holds."""
        return self.target.holdings

    @property
    def schedule(self) -> Schedule:
        """When moves are due."""
        return self._decider.schedule

    def next_due(self) -> int | None:
        """The step after which the next move is due."""
        if not self.tie.attached or not self.method.moves:
            return None
        return self._due(self.holdings.book.read("steps") + 1)

    def _due(self, step: int) -> int | None:
        """The first step from this one on after which a decision is due.

        A last one that was skipped is made up for, in the schedule's rhythm, where only it brings what was promised.
        """
        due = self.schedule.upcoming(step)
        return self.schedule.following(step) if due is None and self.holdings.book.read("owed") else due

    def reschedule(self, schedule: Schedule) -> None:
        """Move by another schedule from now on."""
        self.tie.require()
        known, self._decider.schedule = self.next_due(), schedule
        if self.next_due() != known:
            self._decider.forget()  # sums that were begun for another step
        self.arm()

    # observe ----------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Collect gradients in the coming step if a decision will look at them. Also after a load."""
        upcoming = self.holdings.book.read("steps") + 1
        due = self._due(upcoming)
        armed = self._decider.collects(upcoming, due)
        for backwards in self.backwards:
            backwards.arm(armed)
        for site in self._masked:
            site.arm(armed)
        # steps up to this one have nothing to decide, to collect or to complain about
        busy = (self._decider.busy and due is not None) or not self.complaints.looked
        self._quiet = 0 if busy else sys.maxsize if due is None else due - 1 - self._decider.window
        special = armed or due == upcoming or self._several or self._masked or self.method.young
        self._plain = not (special or self.target.followers)

    # the step ---------------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The optimizer's pre-hook."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            calm = self._plain and not self.pairing.unchecked and not self._guard.holds
            if not calm or not all(map(_complete, self.backwards)):
                self.before_update()
            return None
        return with_gradients(args, kwargs, self.before_update)

    def before_update(self) -> None:
        """Between backward and update."""
        target = self.target
        if self.pairing.unchecked or target.followers:
            self._check()
        if self._guard.holds:  # what a step that failed has left
            self._guard.forget()
        everyone = not self._several  # whether every site takes part; on another rank one may not
        for backwards in self.backwards:
            if not backwards.settle():
                everyone = False
        updated: dict[str, bool] = {}
        if not everyone:
            updated = self._updated()
            self._guard.before(target.holdings.flats, updated, target.optimizer)
            if not any(updated.values()):
                self.complaints.unheard()
        for site in self._masked:
            site.settle(elsewhere=self._several and updated[site.name])
        if self.method.young:
            step = self.holdings.book.read("steps") + 1
            self._guard.before_young(self.holdings.flats, self.holdings.masked, step, target.optimizer)

    def _check(self) -> None:
        """Refuse a model, an optimizer and copies that do not belong together."""
        self.pairing.check()
        stamp = self.holdings.stamp()
        if any(copy.stamp() != stamp for copy in self.target.followers):
            raise StateError(COPY_APART)

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's post-hook: after the update, if it was really taken."""
        target = self.target
        if self._guard.holds:
            self._guard.after(target.optimizer, target.fresh)
        masked = target.holdings.masked
        if masked is not None:
            masked.clear_outside()
        if skipped(target.optimizer):
            self.arm()
            return
        step = self._count()  # a step that was really taken
        if step <= self._quiet:
            for backwards in self.backwards:
                backwards.forget()
            for site in self._masked:
                site.forget()
            return
        coming = self._due(step)
        self._decider.take(step, coming)
        due = coming == step
        if due or not self.complaints.looked:
            self.complaints.look(target.holdings.owner)
        if due and self.method.moves:
            self._move(step)
        self.arm()
        if due and self._due(step + 1) is None:  # else one that was skipped may still be made up for
            self.complain()

    def _move(self, step: int) -> None:
        began = time.perf_counter()
        before = self.holdings.units
        reason = self._reason_to_wait()
        plan, entries = (Plan(step, (), skipped=reason), {}) if reason is not None else self._settled(step)
        owes = plan.skipped is not None and self.method.falls and step >= self.schedule.last
        self.holdings.book.write("owed", int(owes))
        if plan.skipped is not None:
            self.holdings.book.add("skipped")
            self.complaints.skipped(step, plan.skipped)
        elif plan.moves_anything:
            self.pairing.doubt()  # it may be interrupted
            apply(plan, entries, self.target)
        self._decider.forget()
        self.recent.extend(notes_of(plan))
        if self.sink is not None:
            seconds = time.perf_counter() - began
            self.sink.decision(event_of(plan, before, seconds, self.holdings.budget, self.holdings.held))

    def _settled(self, step: int) -> tuple[Plan, dict[str, Entry]]:
        """Decide, agree with the other ranks, and let the ledger check it."""
        stamp, proposals = self.holdings.stamp(), self._decider.proposals(step, self._active)
        agreed = [(self.ranks.agree(one.plan, stamp), one.check) for one in proposals]
        plans = [plan for plan, _ in agreed]
        skipped = next((p.skipped for p in plans if p.skipped), None)
        note = next((p.note for p in plans if p.note), "")
        changes = () if skipped else tuple(c for p in plans for c in p.changes)
        plan = Plan(step, changes, skipped, note, tuple(write for p in plans for write in p.writes))
        entries: dict[str, Entry] = {}
        for mine, check in agreed if plan.moves_anything else ():
            entries |= check(mine)
        return plan, entries

    def _updated(self) -> dict[str, bool]:
        """Which sites the optimizer has a gradient for, on any rank: of a backward, or set by hand."""
        ballots = [backwards.ballot() for backwards in self.backwards]
        touched = [int(site.touched) for site in self._masked]
        votes = iter(self.ranks.largest([vote for ballot in [*ballots, touched] for vote in ballot]))
        updated: dict[str, bool] = {}
        for backwards, ballot in zip(self.backwards, ballots, strict=True):
            flags = backwards.elected([next(votes) for _ in ballot])
            updated |= dict(zip((site.name for site in backwards.pool.sites), flags, strict=True))
        return updated | {site.name: next(votes) > 0 for site in self._masked}

    def _reason_to_wait(self) -> str | None:
        """Why nothing may move now: no unit was measured, or what was measured is not finite."""
        sites = self.holdings.sites.values()
        taps = [s.tap for s in sites if not isinstance(s, MaskedSite)]
        self._active = active_sites(sites, self.ranks) if self.method.looks else self._updated()
        (rows,) = self.ranks.largest([sum(t.rows for t in taps)])
        if not any(self._active.values()):
            if any(parameter.grad is not None for parameter in self.target.fresh):
                wide = bool(self.holdings.wide)
                what = ("widths", "") if wide else ("packed sites", ", or use storage='masked'")
                return f"nothing was measured: {BY_HAND.format(*what)}"
            return "nothing was measured: no site took part in a backward pass (is this the model you train?)"
        if rows == 0 and any(tap.touched for tap in taps):
            return "the batch had no rows"
        if not finite(self.target.fresh, self.ranks):
            return "a gradient is NaN or Inf"
        if overwritten(sites, self.ranks):
            return "an input was written to after its backward; give the model a new tensor for each batch"
        return None

    # rare acts --------------------------------------------------------------------------------------------------

    def complain(self) -> None:
        """Promise P6: say it once when training passes by, and when the schedule has run and nothing moved."""
        steps = self.holdings.book.read("steps") if self.tie.attached else 0
        if steps:
            self.complaints.passed_by()
        if self.method.moves and steps >= self.schedule.last and not self.holdings.book.read("moves"):
            self.complaints.nothing_moved(steps)

    def follow(self, copy: Holdings) -> None:
        """Let a copy take part in every move."""
        if copy.stamp() != self.holdings.stamp():
            raise StateError(
                "the copy holds another placement than the model: it missed a move. "
                "Make the copy anew and call handle.follow(copy) right after"
            )
        followers = self.target.followers
        followers[:] = [known for known in followers if known is not copy and not known.cut]
        followers.append(copy)
        self._plain = False

    def restart_moments(self) -> None:
        """Forget the moments of everything managed."""
        self.tie.require()
        for parameter in self.target.fresh:
            restart(self.target.optimizer, parameter)
        self.pairing.write()

    def compact(self) -> int:
        """Shorten the pools to what is held. Returns the slots freed."""
        self.tie.require()
        if self.ranks.several:
            raise StateError("compact() changes shapes, which DDP cannot see; call it on a run with one process")
        pools, everyone = tuple(self.holdings.pools), (self.holdings, *self.target.followers)
        before = sum(pool.capacity * pool.unit_size for pool in pools)
        for holdings in everyone:
            holdings.stamp()
        with rewriting(*everyone):
            for holdings in everyone:
                for pool in holdings.pools:
                    compact(pool, self.target.optimizer, needed(pool))
                holdings.book.write("budget", holdings.held)
        self.pairing.write()
        return before - sum(pool.capacity * pool.unit_size for pool in pools)

    def detach(self) -> None:
        """Take everything back."""
        self.tie.require()
        self.holdings.stamp()
        if self.ranks.several:
            warn(
                "RA005",
                "detach() under DDP gives the model new parameters that DDP does not synchronise: "
                "wrap the detached model anew before training on",
            )
        self._decider.unregister()
        self.tie.undo()
