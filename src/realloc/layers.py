"""Layers that train in turn: the order of one step, and what a choice does to the model."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final, final

import torch
from torch import nn

from realloc.cache.passage import Passage
from realloc.cache.store import Sealed
from realloc.cache.unasked import Unasked
from realloc.decide_layers import LayerLedger, after, decide_layers, plan_for
from realloc.errors import Once, StateError
from realloc.links import Tie
from realloc.methods.layers import Chosen, LayerMethod
from realloc.observe.closure import skipped, with_gradients
from realloc.observe.ranks import Ranks
from realloc.observe.sight import Sight
from realloc.plan import Note, Plan, notes_of
from realloc.pool.rights import KEY, Rights, forget, grant, revoke
from realloc.record.sink import Sink, costs_of, event_of
from realloc.schedule import Schedule
from realloc.sites.blocks import Blocks

QUIET: Final = 10  # steps without any gradient: a schedule may be stepped before training, but not so often
OFF: Final = "uncached"


@final
class LayerEngine:
    """Called by the hooks of `attach`. Which layers train, and how often was decided, is in the model's buffers."""

    def __init__(
        self,
        blocks: Blocks,
        rights: Rights,
        optimizer: torch.optim.Optimizer,
        method: LayerMethod,
        schedule: Schedule | None,
        passage: Passage | None,
        sink: Sink | None,
        ranks: Ranks,
    ) -> None:
        self.blocks = blocks
        self.rights = rights
        self.optimizer = optimizer
        self.method = method
        self.schedule = schedule
        self.passage = passage
        self.sink = sink
        self.recent: deque[Note] = deque(maxlen=1024)
        self.tie, self.once = Tie(), Once()
        self.ranks = ranks
        self.sight = Sight(rights.owner, blocks, method.needs, ranks)
        self.layers = self.sight.layers
        self.below = tuple(p for p in blocks.below if p.requires_grad)
        self.ledger = LayerLedger(blocks, rights, method, reads=passage is not None, embeddings=bool(self.below))
        if passage is not None:
            passage.say = self.once.say
        self._unasked = Unasked(passage)
        self._looking = self._felt = False  # felt: whether the gradients of a first step were looked at
        self.trying = False  # a trial runs: nothing of it is kept

    # numbers ----------------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        """The step after which the next choice is due."""
        if self.schedule is None or not self.method.moves or not self.tie.attached:
            return None
        return self.schedule.upcoming(self.rights.book.read("steps") + 1)

    def reschedule(self, schedule: Schedule) -> None:
        """Choose by another schedule from now on."""
        self.require()
        self.schedule = schedule
        self.arm()

    # the step ---------------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The optimizer's pre-hook; a closure (Lightning's) runs forward and backward inside the step."""
        return with_gradients(args, kwargs, self._measure)

    def _measure(self) -> None:
        on = self.rights.on
        if not self._felt:
            self._feel(on)
        self.sight.measure(on)
        if self._looking:
            for layer, parameters in enumerate(self.layers):
                if layer not in on:
                    forget(parameters)

    def _feel(self, on: Chosen) -> None:
        """Promise P6: say it where a layer is told to train and has no gradient. Looks once there is any."""
        deaf = [layer for layer in on if all(p.grad is None for p in self.layers[layer])]
        silent = len(deaf) == len(on) and all(p.grad is None for p in self.owner.parameters())
        if silent and self.rights.book.read("steps") < QUIET:
            return
        self._felt = True
        if silent:  # nor does the cache hear of that model
            self._unasked = Unasked(None)
        if deaf:
            self.once.say(
                "RA105",
                f"{self.blocks.names[deaf[0]]!r} is to train and had no gradient ({len(deaf)} of {len(on)} layers): "
                "is this the model you train, is the layer skipped, or checkpointed with use_reentrant=True? "
                "take use_reentrant=False",
            )

    def after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """The optimizer's post-hook: after an update that was really taken."""
        if skipped(self.optimizer):
            return
        step = self.rights.book.count()
        self._unasked.after_step()
        if step == 1 and self.sink is not None and self.rights.costs is not None:
            self.sink.decision(costs_of(self.rights.costs, self.blocks.names))
        if self.schedule is None or not self.method.moves:
            return
        if self.schedule.due(step):
            self._move(step)
        self.arm()

    def arm(self) -> None:
        """Let every layer have a gradient in a step whose decision looks at them. Also after a load."""
        due = self.schedule is not None and self.schedule.due(self.rights.book.read("steps") + 1)
        self.sight.near = due and self.method.moves
        looking = self.sight.near and self.sight.gradients
        if looking != self._looking:
            self._looking = looking
            for layer, parameters in enumerate(self.layers):
                if layer not in self.rights.on:
                    grant(parameters) if looking else revoke(parameters, self.optimizer, self.method.state)
            if self.passage is not None:
                self.passage.paused = looking

    def _move(self, step: int) -> None:
        began = time.perf_counter()
        before = self.rights.on
        reason = self.sight.trouble()
        if reason is None:
            self.sight.test(self.optimizer)
            plan = self.ranks.agree(self.choose(step), self.rights.stamp)
        else:
            plan = Plan(step, (), skipped=reason)
        self._looking = False
        if reason is not None:
            self.once.say("RA001", f"no choice of layers at step {step}: {reason}; what trains stays the same")
        self.make(before if reason else after(before, plan))
        self._note(plan, before, time.perf_counter() - began)

    def _note(self, plan: Plan, before: Chosen, seconds: float) -> None:
        self.recent.extend(notes_of(plan))
        if self.sink is not None:
            counts = {self.blocks.name: len(before)}
            self.sink.decision(event_of(plan, counts, seconds, self.ledger.budget, self.ledger.cost(self.rights.on)))

    # the choice -------------------------------------------------------------------------------------------------

    def choose(self, step: int) -> Plan:
        """Decide which layers train from now on; nothing is changed."""
        return decide_layers(self.ledger, self.sight, self.schedule, step)

    def direct(self, chosen: Chosen) -> None:
        """Let these layers train from now on, since somebody said so: recorded as a move is."""
        before = self.rights.on
        self.ledger.check(chosen)
        plan = plan_for(self.ledger, self.sight, self.rights.book.read("steps"), chosen)
        self.make(chosen)
        self._note(plan, before, 0.0)

    def make(self, chosen: Chosen) -> None:
        """Make a choice: rights, gradients, optimizer state, and the prefix that is read."""
        before = self.rights.on
        self.rights.give(chosen)
        number = self.rights.book.add("number")  # the first choice is the start, and no move
        if chosen != before and number > 1:
            self.rights.book.add("moves")
        self.sight.settle(before, chosen)
        self.enact()

    def enact(self, *, loaded: bool = False) -> None:
        """Bring the model in line with its buffers: after a choice, and after a load."""
        on = self.rights.on
        self._looking = self._looking and not loaded  # `arm` lets them look again
        for layer, parameters in enumerate(self.layers):
            grant(parameters) if layer in on else revoke(parameters, self.optimizer, self.method.state)
        embeddings = self.ledger.trains_below(on)
        grant(self.below) if embeddings else revoke(self.below, self.optimizer, self.method.state)
        if self.passage is not None:
            self.passage.paused = self._looking
            if loaded:
                self.passage.off = bool(self.rights.book.read(OFF))
            count = 0 if embeddings else min(on, default=len(self.blocks))
            end = self.blocks.ends[count - 1] if count else 0
            if loaded or end != self.passage.end:
                lower = self.blocks.lower(count) if count else ()
                self.passage.freeze(end, lower)
            if loaded:
                self.passage.unseal(Sealed(*(self.rights.book.read(name) for name in Sealed._fields)))

    def seal(self) -> None:
        """Before the model's state is taken: what the cache's file holds."""
        if self.passage is not None:
            for name, number in self.passage.seal()._asdict().items():
                self.rights.book.write(name, number)
            self.rights.book.write(OFF, int(self.passage.off))

    # words ------------------------------------------------------------------------------------------------------

    @property
    def owner(self) -> nn.Module:
        """The module that has the buffers."""
        return self.rights.owner

    def buffers(self) -> dict[str, torch.Tensor]:
        """Ours, by name."""
        return {name: b for name, b in self.owner._buffers.items() if name.startswith(KEY[:-1]) and b is not None}

    def unregister(self) -> None:
        """Take our buffers off."""
        for name in self.buffers():
            del self.owner._buffers[name]

    def complain(self) -> None:
        """Promise P6: say it once where the method was to move and never did."""
        steps = self.rights.book.read("steps") if self.tie.attached else 0
        last = None if self.schedule is None else self.schedule.last
        if self.method.moves and last is not None and steps >= last and not self.rights.book.read("moves"):
            self.once.say("RA003", f"no layer has started or stopped in {steps} steps; see handle.explain(layer)")

    def detach(self) -> None:
        """Give the plain model back; a second call does nothing."""
        self.complain()
        self.tie.undo()

    def require(self) -> None:
        """Refuse work after detach."""
        self.tie.require()
        if KEY not in self.owner._buffers:
            raise StateError("the buffers of the layers were taken off this model; attach() again")
