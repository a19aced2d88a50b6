"""The training loop: a user's own plain loop. realloc is attached before it and has no line inside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from realloc.handle import Handle
from realloc.rate_handle import RateHandle
from realloc.record.state import Stateful
from realloc.train.evaluate import LossOf
from realloc.train.order import Order
from realloc.train.visit_order import VisitBatches

AfterStep = Callable[[int, Tensor], None]


@final
@dataclass(frozen=True)
class Spent:
    """A budget and what was done with it, counted in ``currency``; None: there is none."""

    currency: str | None = None
    budget: int | None = None
    held: int | None = None
    parked: int | None = None
    moves: int | None = None
    units_moved: int | None = None


@final
@dataclass(frozen=True, eq=False)
class Trainee:
    """What the loop trains. ``handle`` is None for a dense model, ``visits`` where all examples come in every epoch."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    handle: Handle | RateHandle | None = None
    visits: VisitBatches | None = None

    @property
    def parts(self) -> dict[str, Stateful]:
        """What a checkpoint holds beside model and optimizer."""
        found: dict[str, Stateful] = {"scheduler": self.scheduler}
        return found if self.visits is None else found | {"visits": self.visits}

    @property
    def spent(self) -> Spent:
        """Where its budget stands."""
        handle = self.handle
        if self.visits is not None:
            visits = self.visits.visits
            return Spent("visits", visits.budget, visits.spent, visits.parked)
        if handle is None:
            return Spent()
        if isinstance(handle, RateHandle):
            return Spent("millionths of rate", handle.budget, handle.held, handle.parked, handle.moves)
        return Spent("weights", handle.budget, handle.held, handle.parked, handle.moves, handle.units_moved)


def fit(trainee: Trainee, batches: Order, loss_of: LossOf, steps: range, after: AfterStep) -> None:
    """Train over a range of steps, counted from 0. ``after`` gets the number of steps taken and the loss."""
    model, optimizer, scheduler = trainee.model, trainee.optimizer, trainee.scheduler
    model.train()
    for step in steps:
        x, y = batches.at(step)
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        after(step + 1, loss.detach())


@final
class Clock:
    """Seconds of training: runs from ``start`` on, stands still inside ``apart``, which keeps its own account."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._since: float | None = None
        self.elsewhere: dict[str, float] = {}

    def resume(self, seconds: float, elsewhere: Mapping[str, float]) -> None:
        """Go on with the accounts of an earlier process."""
        self._counted += seconds
        for what, spent in elsewhere.items():
            self._book(what, spent)

    def start(self) -> None:
        """Begin to count, or go on."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Stand still."""
        self._counted, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Training seconds so far."""
        return self._counted + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Keep a stretch of time out of training and book it under ``what``."""
        running, begin = self._since is not None, time.perf_counter()
        self.stop()
        try:
            yield
        finally:
            self._book(what, time.perf_counter() - begin)
            if running:
                self.start()

    def _book(self, what: str, spent: float) -> None:
        self.elsewhere[what] = self.elsewhere.get(what, 0.0) + spent
