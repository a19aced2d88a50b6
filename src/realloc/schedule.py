"""When to move, and how a number changes along the way. Pure, frozen, printable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Final, final

from realloc.errors import ConfigError


@final
@dataclass(frozen=True)
class Schedule:
    """Due steps ``begin + n, begin + 2n, ...`` up to and including ``until``. Made by ``every``.

    Steps count the optimizer steps really taken; the first one is 1.
    """

    n: int
    begin: int
    until: int
    total: int

    def due(self, step: int) -> bool:
        """Say whether a move is due after this step.

        >>> [step for step in range(1, 21) if every(5, begin=3, until=0.9, total=20).due(step)]
        [8, 13, 18]
        """
        return self.begin < step <= self.until and (step - self.begin) % self.n == 0

    def upcoming(self, step: int) -> int | None:
        """Give the first due step from this one on.

        >>> every(5, begin=3, until=0.9, total=20).upcoming(9), every(5, total=20).upcoming(21)
        (13, None)
        """
        due = self.following(step)
        return due if due <= self.last else None

    def following(self, step: int) -> int:
        """Give the first step from this one on in its rhythm, which goes on where the schedule ends.

        >>> every(5, begin=3, until=0.9, total=20).following(19)
        23
        """
        return self.begin + self.n * max(1, -(-(step - self.begin) // self.n))

    def phase(self, step: int) -> float:
        """Give the way gone from begin (0) to until (1), for curves.

        >>> schedule = every(10, begin=100, until=300, total=400)
        >>> schedule.phase(50), schedule.phase(100), schedule.phase(250), schedule.phase(400)
        (0.0, 0.0, 0.75, 1.0)
        """
        return min(1.0, max(0.0, (step - self.begin) / (self.until - self.begin)))

    @property
    def moves(self) -> int:
        """How many times it fires."""
        return (self.until - self.begin) // self.n

    @property
    def last(self) -> int:
        """The last due step."""
        return self.begin + self.n * self.moves

    def __str__(self) -> str:
        return (
            f"every {self.n} steps after {self.begin}, to step {self.until} of {self.total}: "
            f"{self.moves} move{'s' * (self.moves != 1)}, the last at step {self.last}"
        )


def required(schedule: object) -> Schedule:
    """Refuse what is no schedule.

    >>> required(100)
    Traceback (most recent call last):
    ...
    realloc.errors.ConfigError: schedule is 100; make one with realloc.every(n, until=..., total=...)
    """
    if not isinstance(schedule, Schedule):
        raise ConfigError(f"schedule is {schedule!r}; make one with realloc.every(n, until=..., total=...)")
    return schedule


def every(n: int, *, begin: int | float = 0, until: int | float = 1.0, total: int) -> Schedule:
    """Fire every ``n`` optimizer steps between two moments.

    Args:
        n: steps from one move to the next, 1 or more.
        begin: the moment from which steps are counted; nothing fires at it or before.
        until: the last moment at which a move may fire, after ``begin`` and not after ``total``.
        total: optimizer steps of the whole run.

    ``begin`` and ``until`` are a step when an int, a fraction of ``total`` (rounded down) when a float.

    Raises:
        ConfigError: a value of the wrong type or range, or a schedule that never fires.

    >>> print(every(100, until=0.75, total=1000))
    every 100 steps after 0, to step 750 of 1000: 7 moves, the last at step 700
    """
    n = _count(n, "n", "steps between moves")
    total = _count(total, "total", "optimizer steps of the run")
    first, last = _moment(begin, "begin", total), _moment(until, "until", total)
    if last <= first:
        raise ConfigError(
            f"every(begin={begin!r}, until={until!r}, total={total}): until is step {last}, not after begin at step "
            f"{first}; raise until or lower begin (an int is a step, a float a fraction of total)"
        )
    schedule = Schedule(n, first, last, total)
    if schedule.moves < 1:
        raise ConfigError(
            f"every(n={n}) never fires between step {first} and step {last} (until={until!r}, total={total}); "
            f"pass n={last - first} or less, or a later until (an int is a step, a float a fraction of total)"
        )
    return schedule


def _count(value: int, name: str, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"every({name}={value!r}): {name} is the number of {what}; pass an integer of 1 or more")
    return int(value)


def _moment(value: int | float, name: str, total: int) -> int:
    known = isinstance(value, Real) and not isinstance(value, bool)
    if known and isinstance(value, Integral) and 0 <= value <= total:
        return int(value)
    if known and not isinstance(value, Integral) and 0.0 <= value <= 1.0:
        # the small term keeps 0.29 * 100 at step 29, where floats give 28.999999999999996
        return min(total, math.floor(float(value) * total + 1e-9 * max(1.0, float(value) * total)))
    raise ConfigError(
        f"every({name}={value!r}, total={total}): pass a step from 0 to {total} as an int, "
        f"or a fraction of total from 0.0 to 1.0 as a float"
    )


_SHAPES: Final[dict[str, Callable[[float], float]]] = {
    "constant": lambda phase: 1.0,
    "cosine": lambda phase: (1.0 + math.cos(math.pi * phase)) / 2.0,
    "linear": lambda phase: 1.0 - phase,
    "cubic": lambda phase: (1.0 - phase) ** 3,
    "until the end": lambda phase: float(phase < 1.0),
}


@final
@dataclass(frozen=True)
class Curve:
    """A number that goes from ``start`` at phase 0 to ``end`` at phase 1. Made by the functions below.

    Both ends are met exactly; a phase outside [0, 1] counts as the nearer end.
    """

    shape: str
    start: float
    end: float

    def __call__(self, phase: float) -> float:
        """Give the number at a phase."""
        left = _SHAPES[self.shape](min(1.0, max(0.0, phase)))
        return self.start * left + self.end * (1.0 - left)

    def __str__(self) -> str:
        return f"{self.start:g}" if self.shape == "constant" else f"{self.shape} {self.start:g} to {self.end:g}"


def constant(value: float) -> Curve:
    """Stay at one value.

    >>> constant(0.3)(0.7)
    0.3
    """
    number = _number(value, "constant", "value")
    return Curve("constant", number, number)


def cosine(start: float, end: float = 0.0) -> Curve:
    """Fall as half a cosine: ``end + (start - end) (1 + cos(pi p)) / 2``. RigL's drop fraction (1911.11134, eq. 1).

    >>> cosine(0.3)(0.0), round(cosine(0.3)(0.5), 3), cosine(0.3)(1.0)
    (0.3, 0.15, 0.0)
    """
    return Curve("cosine", _number(start, "cosine", "start"), _number(end, "cosine", "end"))


def until_end(start: float, end: float = 0.0) -> Curve:
    """Stay at start, and be at end from phase 1 on.

    >>> until_end(1.0, 0.25)(0.99), until_end(1.0, 0.25)(1.0)
    (1.0, 0.25)
    """
    return Curve("until the end", _number(start, "until_end", "start"), _number(end, "until_end", "end"))


def linear(start: float, end: float = 0.0) -> Curve:
    """Go straight from start to end.

    >>> linear(1.0, 0.5)(0.5)
    0.75
    """
    return Curve("linear", _number(start, "linear", "start"), _number(end, "linear", "end"))


def cubic(start: float, end: float) -> Curve:
    """Fall fast, then slowly: ``end + (start - end) (1 - p)^3``. The density of GMP (1710.01878, eq. 1) and GraNet.

    >>> cubic(1.0, 0.0)(0.5)
    0.125
    """
    return Curve("cubic", _number(start, "cubic", "start"), _number(end, "cubic", "end"))


def _number(value: float, curve: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{curve}({name}={value!r}): pass a finite number")
    return float(value)
