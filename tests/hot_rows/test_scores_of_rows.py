"""The sketch, each score and the exchange, each beside a plain reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Run
from torch import Tensor

from kinds import HOT_ROWS
from realloc.errors import ConfigError, StateError
from realloc.kernels.seek import hashed, owned_rows, owned_rows_plain, tally
from realloc.kernels.sketch import Entries, Sketch, insert, insert_plain
from realloc.methods.rows import SCORES, rows
from realloc.pool.hot_rows import directions_of
from realloc.rng import stream
from realloc.scores.row_score import RowScore, RowsKnown, RowStep
from realloc.select.exchange import exchange

BUCKETS, SHARED, WIDE, TABLES = 3, 5, 2, 2


def empty() -> Sketch:
    slots = 4 * BUCKETS
    return Sketch(
        keys=torch.full((slots,), -1), tables=torch.zeros(slots, dtype=torch.int32),
        owned=torch.full((slots,), -1, dtype=torch.int32), scores=torch.zeros(slots), inherited=torch.zeros(slots),
        sums=torch.zeros(slots, WIDE), shared_scores=torch.zeros(SHARED), shared_sums=torch.zeros(SHARED, WIDE),
    )  # fmt: skip


def one(key: int, gain: float = 1.0, table: int = 0) -> Entries:
    return Entries(
        torch.tensor([key]), torch.tensor([table], dtype=torch.int32), torch.tensor([gain]), torch.zeros(1, WIDE)
    )


entry = st.tuples(st.sampled_from([*range(30), 2**24 + 1, 2**62]), st.integers(0, 1), st.integers(0, 8))


@settings(deadline=None)
@given(st.lists(st.lists(entry, max_size=12), max_size=6), st.data())
def test_the_kernel_is_the_plain_walk(steps: list[list[tuple[int, int, int]]], data: st.DataObject) -> None:
    fast, plain = empty(), empty()
    for step in steps:
        once = list({(key, table): gain for key, table, gain in step}.items())
        entries = Entries(
            torch.tensor([k for (k, _), _ in once], dtype=torch.int64),
            torch.tensor([t for (_, t), _ in once], dtype=torch.int32),
            torch.tensor([float(g) for _, g in once]),
            torch.tensor([[g * 0.5, -g] for _, g in once]).reshape(-1, WIDE),
        )
        insert(fast, entries, TABLES)
        insert_plain(plain, entries, TABLES)
        for mine, theirs in zip(vars(fast).values(), vars(plain).values(), strict=True):
            assert torch.equal(mine, theirs)
        known = (fast.keys >= 0).nonzero().flatten().tolist()
        if known:  # some of them own rows from here on, and are never evicted
            slot = data.draw(st.sampled_from(known))
            fast.owned[slot] = plain.owned[slot] = slot
    owners = [(s, int(fast.owned[s])) for s in range(4 * BUCKETS) if int(fast.owned[s]) >= 0]
    assert all(row == slot for slot, row in owners)


def test_an_entry_of_no_table_is_refused() -> None:
    with pytest.raises(StateError):
        insert(empty(), one(1, table=TABLES), TABLES)


def test_a_score_is_never_below_the_true_one_and_what_is_inherited_is_known() -> None:
    """SpaceSaving's bound; less what it inherited, a score is what the id gained since the sketch knows it."""
    draw, sketch, true, since = torch.Generator().manual_seed(0), empty(), {}, {}
    for _ in range(300):
        key = int(torch.randint(0, 40, (1,), generator=draw) ** 2 // 40)
        true[key] = true.get(key, 0) + 1
        before = set(sketch.keys.tolist())
        insert(sketch, one(key), TABLES)
        since[key] = since.get(key, 0) + 1 if key in before else 1
    assert bool((sketch.keys >= 0).all()) and bool(sketch.inherited.any())
    for slot, key in enumerate(sketch.keys.tolist()):
        score, inherited = float(sketch.scores[slot]), float(sketch.inherited[slot])
        assert score - inherited == since[key] <= true[key] <= score
    assert float(sketch.shared_scores.sum()) == 300


def test_ids_are_found_as_the_plain_walk_finds_them() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, tables, owned = torch.full((64,), -1), torch.zeros(64, dtype=torch.int32), torch.full((64,), -1)
    ids = torch.cat([torch.arange(200), torch.tensor([2**24 + 1, 2**53 + 1, 2**62, 2**63 - 1])])
    for number in (0, 1):
        buckets = hashed(ids, number, 7, 16)[1]
        for at in torch.randperm(len(ids), generator=draw)[:40].tolist():
            free = [s for s in range(4 * int(buckets[at]), 4 * int(buckets[at]) + 4) if int(keys[s]) < 0]
            if free:
                keys[free[0]], tables[free[0]], owned[free[0]] = ids[at], number, 7 + free[0]
    owned[::3] = -1  # known, without a row
    known = keys, tables, owned.int()
    for number in (0, 1, 2):
        found = owned_rows(ids.view(4, -1), *known, number, 7)
        assert torch.equal(found, owned_rows_plain(ids.view(4, -1), *known, number, 7))
        assert torch.equal(owned_rows(ids[:200].int(), *known, number, 7), found.flatten()[:200])
        assert bool((found >= 7).any()) == (number < 2)
    assert torch.equal(owned_rows(ids, *(t[:0] for t in known), 1, 7), hashed(ids, 1, 7, 0)[0])
    assert owned_rows(ids[:0].view(3, 0), *known, 0, 7).shape == (3, 0)
    for bad in (torch.tensor([3, -1]), torch.tensor([-(2**63)])):
        with pytest.raises(ConfigError, match="an id is -"):
            owned_rows(bad, *known, 0, 7)


@settings(deadline=None)
@given(
    st.lists(st.integers(-1, 6), max_size=40), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
)  # fmt: skip
def test_a_tally_is_that_of_a_dictionary(ids: list[int], dtype: torch.dtype, sums: bool) -> None:
    gradient = torch.randn(len(ids), 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    noted = tally(4, torch.tensor(ids, dtype=torch.int64), gradient, sums)
    expected: dict[int, Tensor] = {}
    for key, row in zip(ids, gradient.double(), strict=True):
        if key >= 0:
            mine = expected.setdefault(key, torch.zeros(5, dtype=torch.float64))
            mine += torch.cat([torch.tensor([1.0, float(row.norm())], dtype=torch.float64), row])
    assert noted.table == 4 and noted.ids.tolist() == list(expected)
    plain = torch.stack([*expected.values()]) if expected else torch.zeros(0, 5, dtype=torch.float64)
    torch.testing.assert_close(noted.numbers, plain if sums else plain[:, :2])


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


@pytest.mark.parametrize(
    ("gain", "word"),
    [
        (lambda step: step.counts[:, None].expand(-1, 8), r"gave \(\d+, 8\) torch.float64 for \d+ ids"),
        (lambda step: step.counts[:-1], "its gain is one number for each"),
        (lambda step: torch.cat([step.counts, step.counts]), "its gain is one number for each"),
        (lambda step: step.counts.sum(), r"gave \(\) torch.float64"),
        (lambda step: step.counts.tolist(), "gave a list for"),
        (lambda step: -step.counts, "below 0, NaN or Inf"),
        (lambda step: step.counts * float("nan"), "below 0, NaN or Inf"),
    ],
)
def test_a_gain_that_is_not_one_number_an_id_never_reaches_the_sketch(gain: Any, word: str) -> None:
    run = Run(rows(RowScore("mine", gain), look=1))
    before = {name: buffer.clone() for name, buffer in run.model.store.named_buffers()}
    with pytest.raises(StateError, match=f"score 'mine' gave .*{word}|{word}"):
        run.train(range(2))
    assert all(torch.equal(buffer, before[name]) for name, buffer in run.model.store.named_buffers())
