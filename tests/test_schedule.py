import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.errors import ConfigError
from realloc.finetune.arms.ranks import moments
from realloc.schedule import constant, cosine, cubic, every, linear


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 50), st.integers(0, 100), st.integers(1, 200), st.integers(0, 100))
def test_fires_at_begin_plus_multiples_up_to_until(n, begin, length, tail):
    until = begin + length
    total = until + tail
    if length < n:
        with pytest.raises(ConfigError, match="never fires"):
            every(n, begin=begin, until=until, total=total)
        return
    schedule = every(n, begin=begin, until=until, total=total)
    due = [step for step in range(-3, total + n + 3) if schedule.due(step)]
    expected = list(range(begin + n, until + 1, n))
    assert due == expected and schedule.moves == len(expected) and schedule.last == expected[-1]


def test_int_is_a_step_and_float_a_fraction():
    assert every(10, until=0.9, total=120).until == 108
    assert every(10, until=108, total=120) == every(10, until=0.9, total=120)
    assert every(1, until=1, total=120).until == 1
    assert every(1, until=1.0, total=120).until == 120
    assert every(1, total=7).until == 7
    assert every(1, begin=0.5, total=100).begin == 50
    assert every(1, until=0.29, total=100).until == 29
    assert every(1, until=0.75, total=10).until == 7
    assert every(np.int64(5), until=np.float64(0.5), total=np.int64(100)) == every(5, until=0.5, total=100)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 10**7))
def test_a_fraction_written_as_a_ratio_is_rounded_down_exactly(part, total):
    schedule_until = math.floor(part * total / 1000 + 1e-9 * max(1.0, part * total / 1000))
    exact = part * total // 1000
    assert abs(schedule_until - exact) <= (1 if part * total / 1000 > 1e7 else 0)
    if exact >= 1:
        assert every(1, until=part / 1000, total=total).until in (exact, schedule_until)


def test_phase_runs_from_begin_to_until():
    schedule = every(10, begin=100, until=300, total=400)
    assert [schedule.phase(s) for s in (0, 100, 150, 200, 300, 399)] == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    assert schedule.phase(schedule.last) == 1.0


def test_frozen_and_printable():
    schedule = every(5, until=10, total=10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.n = 3
    assert str(schedule) == "every 5 steps after 0, to step 10 of 10: 2 moves, the last at step 10"
    assert str(every(10, total=10)).endswith("1 move, the last at step 10")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0, "until": 0.9, "total": 120}, "n=0.*1 or more"),
        ({"n": -5, "total": 120}, "n=-5.*1 or more"),
        ({"n": 2.5, "total": 120}, "n=2.5.*integer"),
        ({"n": 10.0, "total": 120}, "n=10.0.*integer"),
        ({"n": True, "total": 120}, "n=True.*integer"),
        ({"n": math.nan, "total": 120}, "n=nan.*integer"),
        ({"n": "10", "total": 120}, "n='10'.*integer"),
        ({"n": None, "total": 120}, "n=None.*integer"),
        ({"n": 10, "total": 0}, "total=0.*1 or more"),
        ({"n": 10, "total": -1}, "total=-1.*1 or more"),
        ({"n": 10, "total": 1e3}, "total=1000.0.*integer"),
        ({"n": 10, "total": True}, "total=True.*integer"),
        ({"n": 10, "total": math.nan}, "total=nan.*integer"),
        ({"n": 10, "until": 0, "total": 120}, "until=0.*not after begin"),
        ({"n": 10, "until": 0.0, "total": 120}, "until=0.0.*not after begin"),
        ({"n": 10, "begin": 50, "until": 50, "total": 120}, "begin=50, until=50.*raise until"),
        ({"n": 10, "begin": 60, "until": 0.5, "total": 120}, "until is step 60.*begin at step 60"),
        ({"n": 10, "begin": 80, "until": 0.5, "total": 120}, "until is step 60"),
        ({"n": 10, "until": 121, "total": 120}, "until=121, total=120.*from 0 to 120"),
        ({"n": 10, "until": 1.5, "total": 120}, "until=1.5.*from 0.0 to 1.0"),
        ({"n": 10, "until": -0.1, "total": 120}, "until=-0.1"),
        ({"n": 10, "until": -3, "total": 120}, "until=-3"),
        ({"n": 10, "until": math.nan, "total": 120}, "until=nan"),
        ({"n": 10, "until": math.inf, "total": 120}, "until=inf"),
        ({"n": 10, "until": True, "total": 120}, "until=True"),
        ({"n": 10, "until": "end", "total": 120}, "until='end'"),
        ({"n": 10, "until": None, "total": 120}, "until=None"),
        ({"n": 10, "begin": -1, "total": 120}, "begin=-1"),
        ({"n": 10, "begin": math.nan, "total": 120}, "begin=nan"),
        ({"n": 10, "begin": False, "total": 120}, "begin=False"),
        ({"n": 200, "until": 0.9, "total": 120}, "n=200.*never fires.*n=108 or less"),
        ({"n": 10, "until": 1, "total": 120}, "never fires.*an int is a step"),
    ],
    ids=str,
)
def test_refuses(arguments, says):
    with pytest.raises(ConfigError, match=says):
        every(arguments.pop("n"), **arguments)


@pytest.mark.parametrize("curve", [cosine(0.3), linear(0.3), cubic(1.0, 0.05), cosine(0.1, 0.7)], ids=str)
def test_curves_meet_both_ends_exactly_and_never_turn(curve):
    assert curve(0.0) == curve.start and curve(1.0) == curve.end
    assert curve(-2.0) == curve.start and curve(9.0) == curve.end
    along = [curve(i / 50) for i in range(51)]
    signs = {b >= a for a, b in itertools.pairwise(along)}
    assert len(signs) == 1


def test_curves_equal_their_formula():
    for p in (0.1, 0.37, 0.5, 0.9):
        assert cosine(0.3, 0.1)(p) == pytest.approx(0.1 + 0.1 * (1 + math.cos(math.pi * p)))
        assert linear(0.3, 0.1)(p) == pytest.approx(0.3 - 0.2 * p)
        assert cubic(1.0, 0.1)(p) == pytest.approx(0.1 + 0.9 * (1 - p) ** 3)
        assert constant(0.3)(p) == 0.3
    assert str(cosine(0.3)) == "cosine 0.3 to 0" and str(constant(0.2)) == "0.2"
    assert cosine(0.3) == cosine(0.3, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "0.3", None])
def test_curves_refuse(value):
    for curve in (constant, cosine, linear):
        with pytest.raises(ConfigError, match=curve.__name__):
            curve(value)
    with pytest.raises(ConfigError, match="end="):
        cubic(1.0, value)


@given(st.integers(1, 400), st.integers(1, 20), st.data())
def test_moves_of_a_run_whose_length_was_revised(steps, apart, data):
    """The last move is still to come, and two moves stay apart."""
    gone = data.draw(st.integers(0, steps))
    made = data.draw(st.integers(0, gone))
    found = moments(steps, apart, gone, made)
    coming = found.upcoming(gone + 1)
    assert coming is not None and found.last >= gone + 1
    assert not made or coming >= made + apart
    assert moments(steps, apart) == moments(steps, apart, 0, 0)
