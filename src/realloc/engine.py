"""The flow of one optimizer step: what took part, the guard, the count, the decision, the move, the record."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor, nn

from realloc.allocate.apportion import apportion
from realloc.apply import Target, apply, mark_groups
from realloc.decide import Standing, decide, least_of, target_of
from realloc.errors import StateError, warn
from realloc.kernels.taps import current_task
from realloc.ledger import check
from realloc.methods.method import Method
from realloc.observe.average import Averages
from realloc.observe.gradients import DenseGradient, GradientSource, PairGradient
from realloc.observe.ranks import Ranks
from realloc.plan import Plan
from realloc.pool.compact import compact
from realloc.pool.flat import FlatPool
from realloc.pool.guard import Guard
from realloc.pool.holdings import Holdings, Site
from realloc.pool.masked import MaskedPool
from realloc.pool.state import restart
from realloc.record.sink import Sink, event_of
from realloc.schedule import Schedule
from realloc.sites.masked import is_blank
from realloc.sites.packed import PackedSite, half_frozen


@final
class Engine:
    """Called by the hooks of `attach`; calls decide, ledger, apply and record. Keeps no state that a resume needs."""

    def __init__(
        self,
        target: Target,
        method: Method,
        schedule: Schedule,
        *,
        ranks: Ranks,
        sink: Sink | None,
        undo: Callable[[], None],
        old: dict[str, weakref.ref[nn.Parameter]],
    ) -> None:
        self.target = target
        self.method = method
        self.schedule = schedule
        self.ranks = ranks
        self.sink = sink
        self.recent: deque[Plan] = deque(maxlen=64)
        self._undo = undo
        self._old = old
        self._attached = True
        self._guard = Guard(method.young)
        self._averages = Averages(self.holdings, method.average)
        self._warned: set[str] = set()
        self._active: dict[str, bool] = {}
        self.arm()

    @property
    def holdings(self) -> Holdings:
        """What the model holds."""
        return self.target.holdings

    @property
    def attached(self) -> bool:
        """False once detached."""
        return self._attached

    def next_due(self) -> int | None:
        """The step after which the next move is due."""
        if not self._attached or not self.method.moves:
            return None
        steps = range(self.holdings.book.read("steps") + 1, self.schedule.until + 1)
        return next((s for s in steps if self.schedule.due(s)), None)

    # observe ----------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Collect gradients in the coming step if a decision will look at them. Also after a load."""
        upcoming = self.holdings.book.read("steps") + 1
        needs = self.method.keep.needs | (self.method.want.needs if self.method.want else frozenset())
        looks = "gradient" in needs or self.method.moments == "seed"
        armed = self._averages.active or (looks and self.schedule.due(upcoming))
        for site in self.holdings.sites.values():
            if isinstance(site, PackedSite):
                site.tap.reset()
                site.tap.armed = armed
            else:
                site.armed, site.dense_gradient, site.touched = armed, None, False

    def on_gradient(self, pool: FlatPool) -> None:
        """A backward ends. If its gradient is the first one since `zero_grad`, forget what was seen before.

        A GradScaler skips a step without a word to the optimizer; that the gradient was thrown away is the sign.
        """
        task = current_task()
        anew = any(site.tap.arrived_before(task) for site in pool.sites) and is_blank(pool.parameter.grad)
        for site in pool.sites:
            site.tap.arrive(task, anew)

    def _gradient(self, site: Site) -> GradientSource | None:
        if isinstance(site, PackedSite):
            if not site.tap.armed:
                return None
            return PairGradient(site.grid, site.tap.pairs, site.tap.dense, site.values(), self.ranks.mean)
        if not site.armed:
            return None
        dense = site.dense_gradient
        return DenseGradient(site.grid, torch.zeros_like(site.parameter) if dense is None else dense, self.ranks.mean)

    def _who_took_part(self) -> dict[str, bool]:
        """Which sites were in a backward of this step, on any rank."""
        sites = self.holdings.sites.values()
        flags = self.ranks.largest([int(_took_part(site)) for site in sites])
        return {site.name: bool(flag) for site, flag in zip(sites, flags, strict=True)}

    # the step ---------------------------------------------------------------------------------------------------

    def before_update(self) -> None:
        """Between backward and update."""
        stamp = self.holdings.stamp()
        for group in self.target.optimizer.param_groups:
            if group.get("realloc_stamp", stamp) != stamp:
                raise StateError(
                    "model and optimizer hold different placements: one was loaded without the other. Load both, "
                    "or call handle.restart_moments() to go on with new moments"
                )
        if any(copy.stamp() != stamp for copy in self.target.followers):
            raise StateError(
                "an averaged copy that follows this model holds another placement: one was loaded without the other. "
                "Load both, or make the copy anew and call handle.follow(copy)"
            )
        if any(pool.parameter not in self.target.fresh for pool in self.holdings.flats):
            raise StateError(
                "the model's parameters were replaced after attach (load_state_dict(assign=True)?) and the optimizer "
                "trains the old ones; load without assign"
            )
        flats = list(self.holdings.flats)
        for pool in flats:
            for site in pool.sites:
                site.tap.settle()
        touched = self.ranks.largest([int(_took_part(site)) for pool in flats for site in pool.sites])
        self._guard.before(flats, [flag > 0 for flag in touched], self.target.optimizer)
        if self.method.young:
            step = self.holdings.book.read("steps") + 1
            self._guard.before_young(flats, self.holdings.masked, step, self.target.optimizer)

    def after_update(self) -> None:
        """After the update, if it was really taken."""
        optimizer = self.target.optimizer
        found_inf = getattr(optimizer, "found_inf", None)
        self._guard.after(optimizer, self.target.fresh)
        if self.method.young:
            self._guard.after_young()
        if self.holdings.masked is not None:
            self.holdings.masked.clear_outside()
        if found_inf is not None and float(found_inf) > 0:
            self.arm()
            return
        self.holdings.note_step()
        step = self.holdings.book.read("steps")
        if self._old:
            self._look_for_captured()
        if self._averages.active and self._finite() and not self._overwritten():
            active = self._who_took_part()
            self._averages.update(lambda site: self._gradient(site) if active[site.name] else None)
        if self.schedule.due(step):
            self._look_for_half_frozen()
        if self.method.moves and self.schedule.due(step):
            self._move(step)
        if self.schedule.due(step) or self.schedule.due(step + 1) or self._averages.active:
            self.arm()
        else:
            self._lower()
        if step == self.schedule.last:
            self.complain()

    def _lower(self) -> None:
        for pool in self.holdings.flats:
            for site in pool.sites:
                site.tap.lower()

    def _move(self, step: int) -> None:
        began = time.perf_counter()
        before = {name: site.held // site.grid.size for name, site in self.holdings.sites.items()}
        reason = self._reason_to_wait()
        plans = []
        if reason is None:
            plans = [self.ranks.agree(plan, self.holdings.stamp()) for plan in self._decide(step)]
            reason = next((p.skipped for p in plans if p.skipped), None)
        if reason is not None:
            plan = Plan(step, (), skipped=reason)
            self.holdings.book.add("skipped")
            self._warn_once("RA001", f"no move at step {step}: {reason}; the budget is intact")
        else:
            plan = Plan(step, tuple(c for p in plans for c in p.changes))
            if plan.moves_anything:
                for pool in self.holdings.pools:
                    mine = {site.name for site in pool.sites}
                    part = Plan(step, tuple(c for c in plan.changes if c.site in mine))
                    check(part, [_Account(site) for site in pool.sites], pool.capacity)
                apply(plan, self.target)
        self.recent.append(plan)
        if self.sink is not None:
            seconds = time.perf_counter() - began
            self.sink.decision(event_of(plan, before, seconds, self.holdings.budget, self.holdings.held))

    def _decide(self, step: int) -> Iterator[Plan]:
        seed, phase = self.holdings.book.read("seed"), self.schedule.phase(step)
        pools = [[self._standing(pool, site, step) for site in pool.sites] for pool in self.holdings.pools]
        held = [sum(site.places.numel() for site in pool) for pool in pools]
        least = [least_of(pool) for pool in pools]
        total = target_of([site for pool in pools for site in pool], self.method, phase)
        targets = apportion(held, max(total, sum(least)), least, held)  # a falling density is shared among the pools
        for pool, target in zip(pools, targets, strict=True):
            yield decide(pool, self.method, step=step, phase=phase, seed=seed, target=target)

    def _standing(self, pool: FlatPool | MaskedPool, site: Site, step: int) -> Standing:
        born = pool.born if isinstance(pool, FlatPool) else pool.born(site.index)
        age = None
        if born is not None:
            low, high = pool.bounds(site.index) if isinstance(pool, FlatPool) else (0, born.numel())
            held = born[low:high] if isinstance(pool, FlatPool) else born[site.places()]
            age = step - held.long()
        return Standing(
            site.name, site.grid, site.shape, site.places(), site.values(), self._gradient(site),
            self._averages.of(site.name), age, active=self._active[site.name],
        )  # fmt: skip

    def _reason_to_wait(self) -> str | None:
        """Why nothing may move now: no unit was measured, or what was measured is not finite."""
        sites = self.holdings.sites.values()
        taps = [s.tap for s in sites if isinstance(s, PackedSite)]
        self._active = self._who_took_part()
        (rows,) = self.ranks.largest([sum(t.rows for t in taps)])
        if not any(self._active.values()):
            return "nothing was measured: no site took part in a backward pass (is this the model you train?)"
        if taps and len(taps) == len(sites) and rows == 0:
            return "the batch had no rows"
        if not self._finite():
            return "a gradient is NaN or Inf"
        if self._overwritten():
            return "an input was written to after its backward; give the model a new tensor for each batch"
        return None

    def _finite(self) -> bool:
        grads = [p.grad for p in self.target.fresh if p.grad is not None]
        finite = all(bool(torch.isfinite(g).all()) for g in grads)
        return not self.ranks.largest([int(not finite)])[0]

    def _overwritten(self) -> bool:
        packed = [site.tap for pool in self.holdings.flats for site in pool.sites]
        return bool(self.ranks.largest([int(any(tap.overwritten() for tap in packed))])[0])

    def _look_for_half_frozen(self) -> None:
        names = half_frozen(self.holdings.owner)
        if names:
            self._warn_once(
                "RA004",
                f"the bias of {names[0]!r} was frozen after attach, its packed weight still trains: freezing a "
                "container does not reach the pool; call requires_grad_(False) on the layer itself",
            )

    def _look_for_captured(self) -> None:
        """Someone still holds dense weights that `attach` replaced: clipping or logging them does nothing."""
        alive = [name for name, reference in self._old.items() if reference() is not None]
        self._old.clear()
        if alive:
            self._warn_once(
                "RA002",
                f"the dense weight of {alive[0]!r} is still referenced: a parameter list captured before attach no "
                "longer reaches the trained weights; take model.parameters() again after attach",
            )

    # rare acts --------------------------------------------------------------------------------------------------

    def complain(self) -> None:
        """Promise P6: say it once when the schedule has run and nothing moved."""
        if not self._attached:
            return
        steps = self.holdings.book.read("steps")
        if self.method.moves and steps >= self.schedule.last and not self.holdings.book.read("moves"):
            self._warn_once(
                "RA003",
                f"no unit has moved in {steps} steps: the drop fraction times the units of each site is below one, "
                "or every decision was skipped; see handle.explain(site)",
            )

    def _warn_once(self, code: str, message: str) -> None:
        if code not in self._warned:
            self._warned.add(code)
            warn(code, message)

    def follow(self, copy: Holdings) -> None:
        """Let a copy take part in every move."""
        if copy.stamp() != self.holdings.stamp():
            raise StateError(
                "the copy holds another placement than the model: it missed a move. "
                "Make the copy anew and call handle.follow(copy) right after"
            )
        if not any(known is copy for known in self.target.followers):
            self.target.followers.append(copy)

    def restart_moments(self) -> None:
        """Forget the moments of everything managed."""
        self.require()
        for parameter in self.target.fresh:
            restart(self.target.optimizer, parameter)
        mark_groups(self.target, self.holdings.stamp())

    def require(self) -> None:
        """Refuse acts on a model that is no longer attached."""
        if not self._attached:
            raise StateError("this handle is detached already; attach() the model again")

    def compact(self) -> int:
        """Shorten the pools to what is held."""
        self.require()
        if self.ranks.several:
            raise StateError("compact() changes shapes, which DDP cannot see; call it on a run with one process")
        before = self.holdings.budget
        for holdings in (self.holdings, *self.target.followers):
            for pool in holdings.pools:
                compact(pool, self.target.optimizer)
            holdings.book.write("budget", holdings.budget)
            holdings.restamp()
        mark_groups(self.target, self.holdings.stamp())
        return before - self.holdings.budget

    def detach(self) -> None:
        """Take everything back."""
        self.require()
        if self.ranks.several:
            warn(
                "RA005",
                "detach() under DDP gives the model new parameters that DDP does not synchronise: "
                "wrap the detached model anew before training on",
            )
        self._attached = False
        self._averages.unregister()
        self._undo()


def _took_part(site: Site) -> bool:
    return site.tap.touched > 0 and not site.frozen if isinstance(site, PackedSite) else site.touched


@final
class _Account:
    """A site as the ledger reads it: places computed once."""

    def __init__(self, site: Site) -> None:
        self.name = site.name
        self.grid = site.grid
        self._places = site.places()

    def places(self) -> Tensor:
        return self._places
