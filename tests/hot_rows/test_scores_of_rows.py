"""The sketch, each score and the exchange, each beside a plain reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kinds import HOT_ROWS
from realloc.errors import ConfigError, StateError
from realloc.kernels.sketch import Entries, Sketch, insert, insert_plain
from realloc.methods.rows import SCORES, rows
from realloc.pool.hot_rows import directions_of
from realloc.rng import stream
from realloc.scores.row_score import RowScore, RowsKnown, RowStep
from realloc.select.exchange import exchange

BUCKETS, WIDE = 3, 2


def empty() -> Sketch:
    slots = 4 * BUCKETS
    return Sketch(
        torch.full((slots,), -1), torch.zeros(slots, dtype=torch.int32), torch.full((slots,), -1, dtype=torch.int32),
        torch.zeros(slots), torch.zeros(slots, WIDE),
    )  # fmt: skip


entry = st.tuples(st.sampled_from([0, 1, 2, 3, 4, 5, 2**24 + 1, 2**62]), st.integers(0, 1), st.integers(0, 8))


@settings(deadline=None)
@given(st.lists(st.lists(entry, max_size=12), max_size=6), st.data())
def test_the_kernel_is_the_plain_walk(steps: list[list[tuple[int, int, int]]], data: st.DataObject) -> None:
    fast, plain = empty(), empty()
    for step in steps:
        once = list({(key, table): gain for key, table, gain in step}.items())
        entries = Entries(
            torch.tensor([k for (k, _), _ in once], dtype=torch.int64),
            torch.tensor([t for (_, t), _ in once], dtype=torch.int32),
            torch.tensor([(k + t) % BUCKETS for (k, t), _ in once], dtype=torch.int64),
            torch.tensor([float(g) for _, g in once]),
            torch.tensor([[g * 0.5, -g] for _, g in once]).reshape(-1, WIDE),
        )
        insert(fast, entries)
        insert_plain(plain, entries)
        for mine, theirs in zip(vars(fast).values(), vars(plain).values(), strict=True):
            assert torch.equal(mine, theirs)
        known = (fast.keys >= 0).nonzero().flatten().tolist()
        if known:  # some of them own rows from here on, and are never evicted
            slot = data.draw(st.sampled_from(known))
            fast.rows[slot] = plain.rows[slot] = slot
    owners = [(int(fast.keys[s]), int(fast.rows[s])) for s in range(4 * BUCKETS) if int(fast.rows[s]) >= 0]
    assert all(
        row == slot for slot, (_, row) in zip([s for s in range(12) if int(fast.rows[s]) >= 0], owners, strict=True)
    )


def test_a_bucket_outside_is_refused() -> None:
    one = Entries(
        torch.tensor([1]),
        torch.zeros(1, dtype=torch.int32),
        torch.tensor([BUCKETS]),
        torch.ones(1),
        torch.ones(1, WIDE),
    )
    with pytest.raises(StateError):
        insert(empty(), one)


def test_a_score_is_never_below_the_true_one() -> None:
    draw, sketch, true = torch.Generator().manual_seed(0), empty(), {}
    for _ in range(300):
        key = int(torch.randint(0, 40, (1,), generator=draw) ** 2 // 40)
        true[key] = true.get(key, 0) + 1
        insert(
            sketch,
            Entries(
                torch.tensor([key]),
                torch.zeros(1, dtype=torch.int32),
                torch.tensor([key % BUCKETS]),
                torch.ones(1),
                torch.zeros(1, WIDE),
            ),
        )
    for slot, key in enumerate(sketch.keys.tolist()):
        least = float(sketch.scores[slot // 4 * 4 : slot // 4 * 4 + 4].min())
        assert true[key] <= float(sketch.scores[slot]) <= true[key] + least


# scores -----------------------------------------------------------------------------------------------------------


def a_step(scale: float = 1.0) -> tuple[RowStep, list[list[list[float]]]]:
    """Gradients of occurrences by id, and what the engine makes of them."""
    pulls = [[[3.0, 4.0]], [[1.0, 0.0], [-1.0, 0.0]], [[0.0, 2.0], [0.0, 2.0], [0.0, 1.0]]]
    pulls = [[[scale * x for x in one] for one in few] for few in pulls]
    norms = [sum(math.hypot(*one) for one in few) for few in pulls]
    sums = [[sum(one[j] for one in few) for j in range(2)] for few in pulls]
    counts = [float(len(few)) for few in pulls]
    return RowStep(*(torch.tensor(x, dtype=torch.float64) for x in (counts, norms, sums))), pulls


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_gains_are_their_formulas_whatever_the_loss_is_scaled_by(scale: float) -> None:
    step, _ = a_step(scale)
    unit = 6 / 12  # occurrences by norms at scale 1
    expected = {
        "gradient": [5 * unit, 2 * unit, 5 * unit], "frequency": [1, 2, 3], "random": [1, 2, 3],
        "product": [1 * 5 * unit, 0, 3 * 5 * unit], "conflict": [5 * unit, 2 * unit, 5 * unit],
    }  # fmt: skip
    for name, gains in expected.items():
        torch.testing.assert_close(SCORES[name].gain(step), torch.tensor(gains, dtype=torch.float64))
    silent = RowStep(torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2))
    assert silent.scale == 0.0 and not SCORES["gradient"].gain(silent).any()


def known(mine: list[list[float]], mates: list[list[float]], owns: list[bool]) -> RowsKnown:
    return RowsKnown(
        torch.arange(len(mine)).float(), torch.tensor(mine), torch.tensor(mates), torch.tensor(owns), stream(0, "x")
    )


@given(st.lists(st.tuples(*[st.floats(-9, 9, width=32)] * 4, st.booleans()), min_size=1, max_size=6))
def test_conflict_is_its_formula(rows_: list[tuple[float, float, float, float, bool]]) -> None:
    found = SCORES["conflict"].worth(
        known([[a, b] for a, b, *_ in rows_], [[c, d] for _, _, c, d, _ in rows_], [o for *_, o in rows_])
    )
    for value, (a, b, c, d, owns) in zip(found.tolist(), rows_, strict=True):
        other = (c, d) if owns else (c - a, d - b)
        expected = math.hypot(a, b) + math.hypot(*other) - math.hypot(other[0] + a, other[1] + b)
        assert value == pytest.approx(max(0.0, expected), abs=1e-9)


def test_a_loud_id_with_silent_or_agreeing_mates_gains_nothing() -> None:
    loud, alone, agree, oppose = [4.0, 3.0], [4.0, 3.0], [8.0, 6.0], [-36.0, -27.0]
    worth = SCORES["conflict"].worth(
        known([loud] * 4, [alone, agree, oppose, [-40.0, -30.0]], [False, False, False, True])
    )
    torch.testing.assert_close(worth, torch.tensor([0.0, 0.0, 10.0, 10.0], dtype=torch.float64))


def test_random_is_drawn_anew_at_each_decision_and_the_others_are_what_was_noted() -> None:
    some = known([[0.0, 0.0]] * 5, [[0.0, 0.0]] * 5, [False] * 5)
    first, second = SCORES["random"].worth(some), SCORES["random"].worth(some)
    assert not torch.equal(first, second)
    assert torch.equal(SCORES["gradient"].worth(some), torch.arange(5).double())


def test_directions_keep_norms_on_average() -> None:
    many = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    ratio = (many @ directions_of(32, 8)).norm(dim=1).square().mean() / 32
    assert 0.7 < float(ratio) < 1.3 and torch.equal(directions_of(32, 8), directions_of(32, 8))


def test_scores_by_name_by_hand_and_unknown() -> None:
    assert HOT_ROWS == ["rows"]
    mine = RowScore("mine", lambda step: step.counts)
    assert rows(mine).score is mine and {rows(name).score.name for name in SCORES} == set(SCORES)
    with pytest.raises(ConfigError, match="score is 'gradent'; nearest: 'gradient'"):
        rows("gradent")
    for bad in ({"decay": 0.0}, {"decay": 1.5}, {"decay": float("nan")}, {"margin": -0.1}, {"margin": "much"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            rows(**bad)


# the exchange -----------------------------------------------------------------------------------------------------


def plainly(worth: list[float], holds: list[bool], free: int, margin: float) -> tuple[list[int], list[int]]:
    waiting = sorted((i for i, h in enumerate(holds) if not h and worth[i] > 0), key=lambda i: (-worth[i], i))
    worst = sorted((i for i, h in enumerate(holds) if h), key=lambda i: (worth[i], i))
    out: list[int] = []
    come: list[int] = []
    for one in waiting:
        if free > 0:
            free -= 1
        elif worst and worth[one] > (1 + margin) * worth[worst[0]]:
            out.append(worst.pop(0))
        else:
            break
        come.append(one)
    return sorted(out), sorted(come)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=14),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_the_exchange_is_the_plain_walk(units: list[tuple[int, bool]], free: int, margin: float) -> None:
    worth, holds = [float(w) for w, _ in units], [h for _, h in units]
    found = exchange(torch.tensor(worth, dtype=torch.float64), torch.tensor(holds, dtype=torch.bool), free, margin)
    out, come = plainly(worth, holds, free, margin)
    assert [part.tolist() for part in found] == [out, come]
    assert len(come) - len(out) <= free


def test_a_newcomer_must_beat_the_margin() -> None:
    def out(mine: float) -> Tensor:
        return exchange(torch.tensor([1.0, mine]), torch.tensor([True, False]), 0, 0.5)[0]

    assert not len(out(1.5)) and len(out(1.51)) == 1
