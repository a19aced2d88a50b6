"""A few steps of a throwaway copy before the run: code gets compiled and loaded, and the pace gets known.

So neither time nor memory of a run depends on who came first, and a time budget can be turned into steps.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

from realloc.errors import ReallocWarning
from realloc.train.evaluate import LossOf
from realloc.train.length import Length, Pace
from realloc.train.loop import Trainee
from realloc.train.order import Batches

WARM, MOVE_EVERY = 6, 3
LEAST_STEPS = 24
SHARE, MOST_SECONDS = 0.05, 5.0  # of a time budget, and at most


def warm_up(make: Callable[[Length], Trainee], batches: Batches, loss_of: LossOf) -> None:
    """Take a few steps and moves, and throw the model away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReallocWarning)  # what is worth a word comes again in the run itself
        _time(make(Length(WARM, MOVE_EVERY, batches.per_epoch)), batches, loss_of, WARM, 0.0)


def measure(make: Callable[[Length], Trainee], batches: Batches, loss_of: LossOf, budget: float) -> Pace:
    """Measure one step and what a move adds: medians over at least 24 steps, or up to 5 % of the budget."""
    warm_up(make, batches, loss_of)
    length = Length(12_000, MOVE_EVERY, batches.per_epoch)
    plain, moved = _time(make(length), batches, loss_of, LEAST_STEPS, min(SHARE * budget, MOST_SECONDS))
    step = statistics.median(plain)
    return Pace(step, max(0.0, statistics.median(moved) - step) if moved else 0.0)


def _time(
    trainee: Trainee, batches: Batches, loss_of: LossOf, least: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Time steps without and with a move, for at least ``least`` steps and ``seconds``."""
    model, optimizer, handle = trainee.model, trainee.optimizer, trainee.handle
    plain: list[float] = []
    moved: list[float] = []
    begin = time.perf_counter()
    step = 0
    model.train()
    while step < least or time.perf_counter() - begin < seconds:
        before, moves = time.perf_counter(), handle.moves if handle else 0
        x, y = batches.at(step)
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        spent = time.perf_counter() - before
        (moved if handle and handle.moves > moves else plain).append(spent)
    return plain, moved
