"""Sorted sets of places, the best of scores, random draws, digests: each kernel beside its plain reference."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.errors import StateError
from realloc.kernels import reference, search, sets
from realloc.kernels.digest import digest
from realloc.kernels.rows import places_of, write_rows
from realloc.kernels.search import Lot, draw, locate, merge, parted

SIZES = st.sampled_from([0, 1, 2, 63, 100, 2000])
NONE = torch.empty(0, dtype=torch.int64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.floats(0, 1), st.sampled_from(["normal", "ties", "zeros", "infinite", "tiny"]), st.booleans(),
       st.integers(0, 99))  # fmt: skip
def test_the_best_are_those_of_a_stable_sort(size, share, kind, double, seed):
    scores = torch.randn(size, generator=generator(seed), dtype=torch.float64 if double else torch.float32)
    if kind == "ties":
        scores = (scores * 2).round() / 2  # with both zeros
    elif kind == "zeros":
        scores = -scores.abs() * 0
    elif kind == "infinite":
        scores[::3] = math.inf
        scores[1::3] = -math.inf
    elif kind == "tiny":
        scores = scores * 1e-42
    count = round(share * size)
    ((best, others),) = parted([(scores, count)])
    wanted, left = reference.parted(scores, count)
    assert torch.equal(best, wanted) and torch.equal(others, left)


def test_several_are_parted_side_by_side_whatever_their_sizes():
    cases = [(torch.randn(n, generator=generator(n)), n // 3) for n in (40_000, 0, 7, 60_000, 1)]
    for (best, others), (scores, count) in zip(parted(cases), cases, strict=True):
        wanted, left = reference.parted(scores, count)
        assert torch.equal(best, wanted) and torch.equal(others, left)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([0, 1, 63, 2000, 50_000]), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_a_merge_is_that_of_the_reference(size, leave, come, seed):
    held = draw([Lot(2 * size + 3, size, generator(seed), NONE)])[0]
    chance = torch.rand(size, generator=generator(seed))
    gone = held[chance < leave]
    fresh = draw([Lot(2 * size + 3, round(come * size), generator(seed + 1), held)])[0]
    for found, wanted in zip(merge(held, gone, fresh, 11), reference.merge(held, gone, fresh, 11), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("gone", "come"),
    [
        ((2,), ()),
        ((), (4,)),
        ((4, 1), ()),
        ((), (7, 5)),
        ((1, 1), ()),
        ((), (5, 5)),
        ((1, 4, 9, 12), ()),
        ((99,), (2,)),
        ((4,), (4,)),
    ],
)
@pytest.mark.parametrize("repeat", [1, 20_000])
def test_a_merge_that_does_not_fit_is_refused(gone, come, repeat):
    held = torch.cat([ints(1, 4, 9), torch.arange(100, 99 + repeat)])
    with pytest.raises(StateError, match="places do not fit"):
        merge(held, ints(*gone), ints(*come))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([(200, 3), (5000, 400), (300_000, 2000), (600_000, 9000)]), st.floats(0, 0.9), st.integers(0, 99)
)
def test_a_draw_is_that_of_the_reference_and_never_of_what_is_taken(size, held, seed):
    high, count = size
    taken = draw([Lot(high, int(held * (high - 2 * count)), generator(seed + 1), NONE)])[0]
    found = draw([Lot(high, count, generator(seed), taken)])[0]
    word = int(torch.randint(2**63 - 1, (), generator=generator(seed)))
    below = search._split(high, count, taken, word).tolist()
    assert below[0] == 0 and below[-1] == count
    assert torch.equal(found, reference.draw(below, high, search.CHUNK, word, taken))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_a_draw_has_exactly_so_many_free_numbers_ascending(high, held, share, seed):
    taken = torch.randperm(high, generator=generator(seed))[: round(held * high)].sort().values
    count = round(share * (high - len(taken)))
    found = draw([Lot(high, count, generator(seed), taken)])[0].tolist()
    assert len(found) == count and found == sorted(set(found)) and not set(found) & set(taken.tolist())
    assert all(0 <= number < high for number in found)


@pytest.mark.parametrize("count", [2, 7])
def test_every_set_is_equally_likely(count):
    seen, source, taken = Counter(), generator(3), ints(0, 5)
    for _ in range(8000):
        seen[tuple(draw([Lot(10, count, source, taken)])[0].tolist())] += 1
    sets = math.comb(8, count)
    assert len(seen) == sets
    assert sum((n - 8000 / sets) ** 2 / (8000 / sets) for n in seen.values()) < sets + 4 * math.sqrt(2 * sets)


def test_chunks_share_a_draw_as_a_uniform_one_would(monkeypatch):
    taken = torch.arange(0, search.CHUNK, 2)  # half of the first chunk is gone
    counts = []
    for seed in range(300):
        found = draw([Lot(2 * search.CHUNK, 3000, generator(seed), taken)])[0]
        counts.append(int((found < search.CHUNK).sum()))
    mean, spread = 1000, math.sqrt(3000 * (1 / 3) * (2 / 3))
    assert abs(sum(counts) / 300 - mean) < 4 * spread / math.sqrt(300)


@pytest.mark.parametrize(
    "lot",
    [
        Lot(10, 8, generator(), ints(1, 2, 3)),
        Lot(10, -1, generator(), ints(1)),
        Lot(10, 2, generator(), ints(1, 1)),
        Lot(10, 2, generator(), ints(5, 1)),
        Lot(10, 2, generator(), ints(-1, 4)),
        Lot(10, 2, generator(), ints(4, 10)),
        Lot(10, 2, generator(), ints(4, 2**40)),
    ],
)
def test_a_draw_that_cannot_be_made_is_refused(lot):
    with pytest.raises(StateError):
        draw([lot])


def test_both_sides_of_the_compiler_cut_alike():
    assert search.CHUNK == sets.CHUNK and search.BINS == sets.TOP


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(0, 99))
def test_locate_is_a_search(held, queries, seed):
    source = generator(seed)
    held = torch.randint(0, 500, (held,), generator=source).unique()
    asked = torch.randint(-5, 505, (queries,), generator=source).sort().values
    assert torch.equal(locate(held, asked), torch.searchsorted(held, asked))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
def test_rows_and_places_are_each_other_s_inverse(height, width, share, seed):
    places = torch.randperm(height * width, generator=generator(seed))[: round(share * height * width)].sort().values
    pointer, columns = torch.full((height + 1,), 7, dtype=torch.int32), torch.full((len(places),), 7, dtype=torch.int32)
    write_rows(places, width, pointer, columns)
    other, also = torch.zeros_like(pointer), torch.zeros_like(columns)
    reference.rows(places, width, other, also)
    assert torch.equal(pointer, other) and torch.equal(columns, also)
    assert torch.equal(places_of(pointer, columns, width), places)
    assert torch.equal(reference.places(pointer, columns, width), places)


@pytest.mark.parametrize("pointer", [[0, 2, 1, 3], [1, 2, 3, 3], [0, 1, 2, 4], [0, 5, 5, 3]])
def test_a_row_pointer_written_by_hand_is_refused(pointer):
    with pytest.raises(StateError, match="damaged"):
        places_of(torch.tensor(pointer, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40_000), st.integers(0, 31), st.integers(0, 99))
def test_a_digest_sees_every_bit_and_every_order(size, bit, seed):
    tensor = torch.randint(-(2**31), 2**31 - 1, (size,), generator=generator(seed), dtype=torch.int32)
    before = digest([tensor, torch.tensor([True])])
    assert before == digest([tensor.clone(), torch.tensor([True])]) and 0 <= before < 2**63
    assert before != digest([tensor]) and before != digest([torch.tensor([True]), tensor])
    other = tensor.clone()
    other[seed % size] ^= 1 << bit if bit < 31 else -(2**31)
    assert before != digest([other, torch.tensor([True])])


def test_a_digest_does_not_depend_on_threads():
    tensor, threads = torch.arange(100_000), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(digest([tensor]))
    finally:
        torch.set_num_threads(threads)
    assert len(set(found)) == 1
