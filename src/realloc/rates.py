"""Learning rate that moves between groups: the order of one step, and what a decision does."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.allocate.rate_shares import shares_among
from realloc.errors import Once, StateError
from realloc.links import Tie
from realloc.methods.rate_method import RateMethod, RatePast
from realloc.observe.closure import skipped, with_gradients
from realloc.observe.ranks import Ranks
from realloc.pool.shares import KEY, MEASURED, SUMS, Shares, Split
from realloc.record.sink import Sink, shares_of
from realloc.rng import stream
from realloc.schedule import Schedule
from realloc.sites.rate_units import RateUnits

LEAST: Final = 1e-12  # of the largest weight: a share has a logarithm


@final
@dataclass(frozen=True)
class Shared:
    """One decision, as `explain` tells it: multipliers by group, before and after."""

    step: int
    before: tuple[float, ...]
    after: tuple[float, ...]


@final
class RateEngine:
    """Called by the hooks of `attach`. Shares, counts and sums are in the model's buffers."""

    def __init__(
        self,
        units: RateUnits,
        shares: Shares,
        optimizer: torch.optim.Optimizer,
        method: RateMethod,
        schedule: Schedule | None,
        sink: Sink | None,
        ranks: Ranks,
    ) -> None:
        self.units, self.shares, self.optimizer, self.method = units, shares, optimizer, method
        self.schedule, self.sink, self.ranks = schedule, sink, ranks
        self.split = Split(optimizer, {id(p): i for i, group in enumerate(units.parameters) for p in group})
        self.recent: deque[Shared] = deque(maxlen=1024)
        self.tie, self.once = Tie(), Once()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        outside = [p for p in shares.owner.parameters() if id(p) not in self.split.unit_of]
        self._outside = tuple((p, id(p) in held) for p in outside)  # and whether it was this optimizer's all the same
        self._before: list[list[Tensor]] | None = None  # values before a step that is measured
        self.silent: list[int] | None = None  # groups that no step since the last decision had a gradient for

    # numbers ----------------------------------------------------------------------------------------------------

    @property
    def rates(self) -> tuple[float, ...]:
        """Multipliers, by group."""
        return tuple(map(self.method.hold.rate, self.shares.held))

    @property
    def budget(self) -> int:
        """Units that are shared."""
        return self.method.hold.budget(len(self.units))

    def next_due(self) -> int | None:
        """The step after which the next decision is due."""
        if self.schedule is None or not self.method.moves or not self.tie.attached:
            return None
        return self.schedule.upcoming(self.shares.book.read("steps") + 1)

    # the step ---------------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The optimizer's pre-hook."""
        self._before = None
        self.mend()
        return with_gradients(args, kwargs, self._open)  # a closure sees the user's groups, and may fail

    def _open(self) -> None:
        """Between backward and update."""
        if self._armed and self._before is None:  # a closure may run twice: before the step, not within it
            self._before = [[p.detach().clone() for p in group] for group in self.units.parameters]
        self._warn_of_late_ones()
        self._hear()
        self.split.open(self.rates)

    def _hear(self) -> None:
        """Note which groups have a gradient: a layer that is dropped now and then is none that never trains."""
        if self.silent is None:  # at the start, after a decision or a load
            self.silent = [group for group, had in enumerate(self.shares.heard) if not had]
        for group in [g for g in self.silent if any(p.grad is not None for p in self.units.parameters[g])]:
            self.shares.hear(group)
            self.silent.remove(group)

    def _warn_of_late_ones(self) -> None:
        """Say of what this optimizer trains now that it is in no group; what another one trains is not ours."""
        if not any(p.grad is not None for p, _ in self._outside):
            return
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        late = [frozen for p, frozen in self._outside if p.grad is not None and id(p) in held]
        if late:
            self._outside = ()
            told = (
                "was frozen when rates were attached trains now: let it require gradients before attach(), since it"
                if late[0]
                else "came into this optimizer after rates were attached trains: attach() anew, since it"
            )
            self.once.say("RA403", f"a parameter that {told} is in no group and takes the scheduled rate")

    @property
    def _armed(self) -> bool:
        due = self.next_due()
        return due is not None and due - self.shares.book.read("steps") <= self.method.window

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's post-hook: after an update that was really taken."""
        self.mend()
        before, self._before = self._before, None
        if skipped(self.optimizer):
            return
        if before is not None:
            self.shares.measured(self._measured(before))
        step = self.shares.book.count()
        if self.schedule is not None and self.method.moves and self.schedule.due(step):
            self._move(step)

    @torch.no_grad()
    def _measured(self, before: list[list[Tensor]]) -> Tensor:
        """Gain, squared movement, squared weight and squared gradient of one step, ``[4, groups]``."""
        rows = []
        for group, old in zip(self.units.parameters, before, strict=True):
            row = torch.zeros(len(MEASURED), dtype=torch.float64, device=self.shares.sums.device)
            for parameter, value in zip(group, old, strict=True):
                moved = parameter.detach().double() - value.double()
                gradient = torch.zeros_like(moved) if parameter.grad is None else parameter.grad.detach().double()
                parts = (-(gradient * moved).sum(), moved.square().sum(), value.double().square().sum())
                row = row + torch.stack([*parts, gradient.square().sum()]).to(row.device)
            rows.append(row)
        return torch.stack(rows, 1)

    def mend(self) -> None:
        """Put the user's groups back after a step; after one that failed half-way, when the next one comes.

        Raises:
            StateError: somebody wrote into a group during the step, which would be lost.
        """
        wrote = self.split.close()
        if wrote is not None:
            raise StateError(
                f"{type(self.optimizer).__name__}, or a hook of its step, wrote {wrote!r} into its groups, which are "
                "split by rate for the step; write before the step, take an optimizer of torch.optim, or detach()"
            )

    # the decision -----------------------------------------------------------------------------------------------

    def _move(self, step: int) -> None:
        began, before = time.perf_counter(), self.shares.held
        sums, seen, heard = self.shares.sums.clone(), self.shares.book.read("seen"), self.shares.heard
        self.shares.forget()
        self.silent = None
        reason = None
        if not seen or not bool((sums[MEASURED.index("gradient")] > 0).any()):
            reason = "no group had a gradient (is this the model you train?)"
        if not bool(sums.isfinite().all()):
            reason = "a gradient or an update is NaN or Inf"
        if reason is None:
            reason = self.decide(self.past(sums / seen, step, heard))
        if reason is not None:
            self.once.say("RA001", f"no sharing of rates at step {step}: {reason}; the shares stay the same")
        after = self.shares.held
        if after != before:
            self.shares.book.add("moves")
        self.recent.append(Shared(step, tuple(map(self.method.hold.rate, before)), self.rates))
        if self.sink is not None:
            seconds = time.perf_counter() - began
            spent = self.shares.book.read("spent")
            self.sink.decision(
                shares_of(step, self.units.names, (before, after), seconds, (self.budget, spent), reason)
            )

    def past(self, means: Tensor, step: int, heard: tuple[bool, ...] = ()) -> RatePast:
        """What the method may know, from the means of the window, and which groups had a gradient before it."""
        gain, movement, weight, gradient = means.tolist()
        seed = self.shares.book.read("seed")
        return RatePast(
            names=self.units.names,
            sizes=tuple(sum(p.numel() for p in group) for group in self.units.parameters),
            gradient=tuple(map(math.sqrt, gradient)), weight=tuple(map(math.sqrt, weight)),
            movement=tuple(movement), gain=tuple(gain), rates=self.rates,
            matrices=tuple(tuple(p.detach() for p in group if p.dim() > 1) for group in self.units.parameters),
            phase=0.0 if self.schedule is None else self.schedule.phase(step),
            draw=lambda word: stream(seed, word), heard=heard,
        )  # fmt: skip

    def decide(self, past: RatePast) -> str | None:
        """Share anew, the same on every rank; returns why not, where nothing may be."""
        method, hold = self.method, self.method.hold
        weights = [float(one) for one in method.weigh(past)]
        told = f"the score of {method.name} gave"
        if len(weights) != len(past):
            return f"{told} {len(weights)} weights for {len(past)} groups; return one for each"
        bad = [one for one in weights if not (math.isfinite(one) and one >= 0)]
        if bad:
            return f"{told} {bad[0]:g} as a weight; return finite numbers above 0"
        trains = past.trains
        largest = max(one for one, on in zip(weights, trains, strict=True) if on)
        if not largest > 0:
            return f"{method.name} found nothing to share by"
        moved = [0.0] * len(past)
        if hold.needs_movement:  # relative movement at share 1: an update is proportional to its rate
            rows = zip(past.movement, past.weight, past.rates, strict=True)
            moved = [m / (w * w) / (r * r) if w > 0 else 0.0 for m, w, r in rows]
            if not sum(moved) > 0:
                return "nothing moved in the window (is the rate 0?)"
        found = shares_among(hold, [max(one, LEAST * largest) for one in weights], method.most, moved, trains)
        shares = tuple(self.ranks.of_first(list(found)))
        self.shares.give(shares)
        self.shares.book.write("spent", self.ranks.of_first([hold.spent(shares, moved)])[0])
        return None

    # words ------------------------------------------------------------------------------------------------------

    def complain(self) -> None:
        """Promise P6: say it once where the method was to move and never did."""
        steps = self.shares.book.read("steps") if self.tie.attached else 0
        last = None if self.schedule is None else self.schedule.last
        if self.method.moves and last is not None and steps >= last and not self.shares.book.read("moves"):
            self.once.say("RA003", f"no rate has moved in {steps} steps; see handle.explain(group)")

    @property
    def owner(self) -> nn.Module:
        """The module that has the buffers."""
        return self.shares.owner

    def unregister(self) -> None:
        """Take our buffers off."""
        for name in (KEY, SUMS):
            self.owner._buffers.pop(name, None)

    def detach(self) -> None:
        """Give the plain model and optimizer back; a second call does nothing."""
        self.complain()
        self.split.close()
        self.tie.undo()
