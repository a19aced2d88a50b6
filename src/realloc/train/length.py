"""How long a run is, and how often it moves: decided once, before the first step, and written down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from realloc.errors import ConfigError
from realloc.methods.example_method import ExampleMethod
from realloc.schedule import Schedule
from realloc.schedule import every as fire_every
from realloc.train.config import EPOCHS, SETTLE, RunConfig
from realloc.visits import Visits

LEAST_STEPS = 1000
MOVES = 50  # about so many moves where the user does not say


@final
@dataclass(frozen=True)
class Length:
    """Steps of the run, steps from move to move (None: a run too short to move), steps of one epoch.

    ``epochs`` is set where a method chooses examples, so that epochs differ in length: ``per_epoch`` is then a mean.
    """

    total: int
    every: int | None
    per_epoch: int
    epochs: int | None = None

    def schedule(self) -> Schedule | None:
        """When moves are due, up to three quarters of the run; None where it is too short.

        The phase ends just before the next move would be due: at its very end a drop fraction may be zero.
        """
        if self.every is None:
            return None
        last = int(SETTLE * self.total) // self.every * self.every
        return fire_every(self.every, until=min(self.total, last + self.every - 1), total=self.total)


@final
@dataclass(frozen=True)
class Pace:
    """Seconds of one step, and what a move adds to it."""

    step: float
    move: float = 0.0


def by_epochs(config: RunConfig, per_epoch: int) -> Length:
    """Count the steps of so many epochs; where none are named, 5 or as many as make 1,000 steps.

    >>> by_epochs(RunConfig(epochs=3), 422).total, by_epochs(RunConfig(), 422).total, by_epochs(RunConfig(), 11).total
    (1266, 2110, 1001)
    """
    epochs = config.epochs or max(EPOCHS, math.ceil(LEAST_STEPS / per_epoch))
    return _length(config, epochs * per_epoch, per_epoch)


def by_budget(config: RunConfig, per_epoch: int, pace: Pace) -> Length:
    """Find the most steps whose expected time, moves included, stays within ``budget_seconds``; at least one.

    >>> by_budget(RunConfig(budget_seconds=10), 100, Pace(0.01, 0.02)).total
    898
    """
    budget = config.budget_seconds or 0.0
    low, high = 1, max(1, math.floor(budget / pace.step))
    while low < high:
        middle = (low + high + 1) // 2
        every = config.every or auto_every(middle)
        moves = int(SETTLE * middle) // every if every else 0
        low, high = (middle, high) if middle * pace.step + moves * pace.move <= budget else (low, middle - 1)
    return _length(config, low, per_epoch)


def auto_every(total: int) -> int | None:
    """Choose the interval that gives about 50 moves, and never fewer than the run has room for.

    >>> auto_every(10_000), auto_every(8), auto_every(1)
    (150, 1, None)
    """
    window = int(SETTLE * total)
    return max(1, round(window / MOVES)) if window else None


def _length(config: RunConfig, total: int, per_epoch: int) -> Length:
    window = int(SETTLE * total)
    if config.every is not None and config.every > window:
        remedy = f"take --every {window} or less" if window else "train longer"
        raise ConfigError(
            f"every {config.every} never fires in a run of {total:,} steps, whose moves end at step {window:,}; "
            f"{remedy}, or leave it out"
        )
    return Length(total, config.every or auto_every(total), per_epoch)


def chosen(config: RunConfig, known: Length, method: ExampleMethod, examples: int) -> Length:
    """The length of a run whose examples are chosen, from that of one in which each comes once an epoch.

    The same epochs in fewer steps; with a budget of seconds the same steps in more epochs.
    """
    epochs = known.total // known.per_epoch
    if config.budget_seconds is not None:
        epochs = max(1, int(known.total / known.per_epoch / method.share))
    visits = Visits(examples, method, epochs=epochs, seed=config.seed)
    total = visits.steps(config.batch_size)
    return Length(total, config.every or auto_every(total), max(1, round(total / epochs)), epochs)
