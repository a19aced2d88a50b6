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

from realloc.hot_row_handle import HotRowHandle
from realloc.record.state import Stateful
from realloc.train.evaluate import LossOf
from realloc.train.order import Order
from realloc.train.spent import AnyHandle, Spent, of_handle, of_stores, of_visits
from realloc.train.visit_order import VisitBatches

AfterStep = Callable[[int, Tensor], None]


@final
@dataclass(frozen=True, eq=False)
class Trainee:
    """What the loop trains.

    ``handle`` is None for a dense model, ``visits`` where all examples come in every epoch, ``rows`` where nothing
    moves rows beside it.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    handle: AnyHandle | None = None
    visits: VisitBatches | None = None
    rows: HotRowHandle | None = None

    @property
    def parts(self) -> dict[str, Stateful]:
        """What a checkpoint holds beside model and optimizer."""
        found: dict[str, Stateful] = {"scheduler": self.scheduler}
        return found if self.visits is None else found | {"visits": self.visits}

    @property
    def spent(self) -> Spent:
        """Where its budget stands."""
        if self.visits is not None:
            return of_visits(self.visits.visits)
        return of_stores(self.model) if self.handle is None else of_handle(self.handle)

    @property
    def spent_on_rows(self) -> Spent:
        """The same of the tables' bytes, also where another budget is the run's own."""
        mover = self.handle if isinstance(self.handle, HotRowHandle) else self.rows
        return of_stores(self.model) if mover is None else of_handle(mover)


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
