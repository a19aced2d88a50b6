"""A budget of seconds as steps: the course and its rates as they should be, and a clock that does what it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realloc.finetune.guide import FEW, Guide
from realloc.finetune.pace import Course, Length


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.apart_for: list[str] = []

    @contextmanager
    def apart(self, what: str) -> Iterator[None]:
        self.apart_for.append(what)
        yield


class Even:
    """Batches of as many tokens each."""

    per_epoch = 10

    def padded(self, step: int) -> int:
        return 64


class Uneven:
    """Batches of 10 to 100 tokens, in an order that repeats."""

    per_epoch = 7

    def padded(self, step: int) -> int:
        return (10, 100, 30, 80, 50, 20, 60)[step % 7]


def ran(
    seconds: float, reserve: float, of: Callable[[int], float], guess: int = 100, batches: Any = None
) -> tuple[Guide, Any, list[Course]]:
    clock, written = Hand(), list[Course]()
    guide = Guide(Length(guess, seconds, reserve), clock, batches or Even(), None, written.append)  # type: ignore[arg-type]
    step = 0
    while not step or not guide.course.over(step):
        clock.seconds += of(step)
        step += 1
        guide.after(step)
    return guide, clock, written


def plain(totals: list[tuple[int, int]], step: int) -> float:
    """Progress by walking half steps: each takes its share of what is left of the run."""
    total, begun, gone = totals[0][1], 0, 0.0
    base = 0.0
    for half in range(2 * step + 1):
        for first, new in totals[1:]:
            if half == 2 * first:
                total, begun, base = new, first, gone
        gone = base + (1 - base) * ((half + 1) / 2 - begun) / (total - begun)
    return gone


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 60)), min_size=0, max_size=5), st.integers(5, 80))
def test_progress_goes_on_from_where_it_was(jumps: list[tuple[int, int]], first: int) -> None:
    totals = [(0, first)]
    for wait, more in jumps:
        step, total = totals[-1]
        at = min(step + wait, total - 1)
        if at > step:
            totals.append((at, at + more))
    course = Course(tuple(totals))
    found = [course.progress(step) for step in range(course.total)]
    assert found == pytest.approx([plain(totals, step) for step in range(course.total)], abs=1e-9)
    assert all(0 < a < b < 1 for a, b in zip(found, [*found[1:], 0.999999999], strict=True)) or len(found) == 1
    assert [Course(((0, first),)).progress(s) for s in range(first)] == [(s + 0.5) / first for s in range(first)]


@given(
    steps=st.lists(st.floats(0.02, 0.2), min_size=1, max_size=40),
    turn=st.integers(3, 60),
    factor=st.floats(0.1, 3.0),
    reserve=st.floats(0.0, 3.0),
    guess=st.integers(100, 10_000),
)
def test_the_seconds_hold_whatever_the_steps_take(
    steps: list[float], turn: int, factor: float, reserve: float, guess: int
) -> None:
    """Steps of any length, ten times faster or three times slower from some step on: at most one step too many."""
    guide, clock, written = ran(20.0, reserve, lambda i: steps[i % len(steps)] * (factor if i >= turn else 1.0), guess)
    longest = max(steps) * max(1.0, factor)
    assert clock.seconds + reserve <= 20.0 + longest
    assert clock.seconds + reserve >= 0.9 * 20.0 - longest
    assert written[-1] == guide.course and clock.apart_for == ["save"] * len(written)
    assert len(written) < 60 and written[-1].totals[-1] == (written[-1].total,) * 2, "the end is written down"


def test_steady_steps_are_counted_right_from_the_first_revision_on() -> None:
    _, clock, written = ran(10.0, 1.0, lambda i: 0.5 if i == 0 else 0.01)
    assert written[0].totals[1][0] == 1 + FEW  # the first step loads code: it is not measured
    assert all(abs(course.total - 851) <= 2 for course in written)
    assert 8.9 < clock.seconds <= 9.0


@given(seconds=st.floats(2.0, 60.0), token=st.floats(1e-3, 5e-3))
def test_steps_of_known_length_are_foreseen_to_the_last(seconds: float, token: float) -> None:
    """A step's time goes with its tokens: the batches to come are known, and so is where the seconds end."""
    _, clock, written = ran(seconds, 0.5, lambda i: token * Uneven().padded(i), batches=Uneven())
    left = seconds - 0.5 - clock.seconds
    assert 0 <= left <= 1.2 * token * 100 + 1e-9
    assert len({course.total for course in written}) <= 2, "the first revision is right"


def test_a_resume_follows_what_is_written_and_then_measures_for_itself() -> None:
    guide, _, _ = ran(10.0, 1.0, lambda i: 0.05)
    written = Course(guide.course.totals[:4])
    clock = Hand()
    again = Guide(Length(100, 10.0, 1.0), clock, Even(), written)  # type: ignore[arg-type]
    for step in range(1, written.revised + 1):
        clock.seconds += 1.0 if step == 3 else 0.05  # a slow machine changes nothing of what is decided
        again.after(step)
        assert again.course == written
    step = written.revised
    while not again.course.over(step):
        clock.seconds += 0.05
        step += 1
        again.after(step)
    assert again.course.totals[:4] == written.totals and again.course.revised > written.revised
    assert clock.seconds <= 9.0


def test_a_number_of_steps_is_never_revised() -> None:
    clock = Hand()
    guide = Guide(Length(7), clock, Even())  # type: ignore[arg-type]
    for step in range(1, 8):
        clock.seconds += 1e6
        guide.after(step)
    assert guide.course.totals == ((0, 7),) and guide.course.over(7) and not guide.course.over(6)
    guide.start(10)
