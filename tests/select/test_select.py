import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.errors import ConfigError, StateError
from realloc.select.sampled import sampled
from realloc.select.streaming import Best
from realloc.select.top_k import top_k
from realloc.select.top_k_per import top_k_per

numbers = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf]), st.floats(-3, 3, width=32))
score_lists = st.lists(numbers, max_size=30)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_top_k(scores, k):
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


@settings(max_examples=200, deadline=None)
@given(score_lists, st.integers(0, 30))
def test_top_k_equals_a_sort_with_ties_to_the_lower_index(scores, k):
    k = min(k, len(scores))
    result = top_k(torch.tensor(scores, dtype=torch.float32), k, generator())
    assert result.dtype == torch.long and result.tolist() == plain_top_k(scores, k)


def test_top_k_of_equal_scores_is_the_front():
    assert top_k(torch.zeros(100_000), 777).tolist() == list(range(777))


@settings(max_examples=150, deadline=None)
@given(score_lists, st.integers(0, 30), st.integers(1, 7), st.randoms(use_true_random=False))
def test_streaming_equals_plain_top_k_in_any_order_of_blocks(scores, k, size, shuffle):
    whole = torch.tensor(scores, dtype=torch.float32)
    starts = list(range(0, len(scores), size))
    shuffle.shuffle(starts)
    best = Best.none(k)
    for start in starts:
        indices = torch.arange(start, min(start + size, len(scores)))
        best = best.merged(whole[indices], indices)
        assert len(best.indices) <= k
    expected = top_k(whole, min(k, len(scores)))
    assert torch.equal(best.indices, expected) and torch.equal(best.scores, whole[expected])


def test_streaming_keeps_double_precision_and_its_threshold():
    best = Best.none(2, torch.float64)
    assert best.threshold == -math.inf
    best = best.merged(torch.tensor([1.0, 1.0 + 1e-12, 0.5], dtype=torch.float64), torch.tensor([4, 5, 6]))
    assert best.indices.tolist() == [4, 5] and best.threshold == 1.0
    assert Best.none(0).merged(torch.ones(3), torch.arange(3)).indices.tolist() == []


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(0, 2.0**99, width=32), st.just(math.inf)), max_size=25),
    st.integers(0, 25),
    st.sampled_from([0.01, 0.3, 1.0, 50.0]),
    st.integers(0, 99),
)
def test_sampled_draws_exactly_k_distinct(scores, k, temperature, seed):
    k = min(k, len(scores))
    scores = torch.tensor(scores, dtype=torch.float32)
    result = sampled(temperature)(scores, k, generator(seed))
    assert result.tolist() == sorted(set(result.tolist())) and len(result) == k
    positive = int((scores > 0).sum())
    assert int((scores[result] > 0).sum()) == min(k, positive)
    assert torch.equal(result, sampled(temperature)(scores, k, generator(seed)))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampled_frequencies_follow_the_power_of_the_score(temperature):
    scores = torch.tensor([1.0, 2.0, 0.0, 3.0])
    source, count = generator(7), Counter()
    select = sampled(temperature)
    for _ in range(4000):
        count[int(select(scores, 1, source))] += 1
    weight = [s ** (1 / temperature) for s in (1.0, 2.0, 0.0, 3.0)]
    for i in range(4):
        assert abs(count[i] / 4000 - weight[i] / sum(weight)) < 0.03


def test_sampled_zeros_are_drawn_evenly_when_the_positive_run_out():
    scores, source, count = torch.tensor([0.0, 5.0, 0.0, 0.0]), generator(1), Counter()
    for _ in range(3000):
        count.update(sampled()(scores, 2, source).tolist())
    assert count[1] == 3000
    assert all(abs(count[i] - 1000) < 120 for i in (0, 2, 3))


def test_sampled_near_temperature_zero_is_top_k():
    scores = torch.rand(50, generator=generator(3))
    assert torch.equal(sampled(1e-6)(scores, 10, generator()), top_k(scores, 10))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1.0, 2.0, 3.0])), max_size=25), st.integers(0, 25))
def test_top_k_per_fills_the_groups_level_by_level(drawn, k):
    k = min(k, len(drawn))
    groups = [g for g, _ in drawn]
    scores = [s for _, s in drawn]
    # plain reference: rank within the group, then take rank 0 of all groups, rank 1 of all groups, ...
    key = []
    for i, (g, s) in enumerate(drawn):
        rank = sum(h == g and (scores[j] > s or (scores[j] == s and j < i)) for j, h in enumerate(groups))
        key.append((rank, -s, i))
    expected = sorted(sorted(range(len(drawn)), key=lambda i: key[i])[:k])
    select = top_k_per(torch.tensor(groups, dtype=torch.long))
    assert select(torch.tensor(scores), k, generator()).tolist() == expected


def test_two_of_four():
    groups = torch.arange(4000) // 4
    scores = torch.rand(4000, generator=generator(5))
    chosen = top_k_per(groups)(scores, 2000, generator())
    assert torch.bincount(groups[chosen]).tolist() == [2] * 1000
    assert torch.equal(
        chosen, scores.view(1000, 4).topk(2).indices.add(torch.arange(1000)[:, None] * 4).flatten().sort()[0]
    )


@pytest.mark.parametrize("select", [top_k, sampled(), top_k_per(torch.zeros(3, dtype=torch.long))])
def test_every_selector_refuses_the_impossible(select):
    good = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="k=4 units asked of 3"):
        select(good, 4, generator())
    with pytest.raises(ConfigError, match="k=-1"):
        select(good, -1, generator())
    with pytest.raises(ConfigError, match="shape"):
        select(good.unsqueeze(1), 1, generator())
    with pytest.raises(StateError, match="1 of 3 scores are NaN; skip"):
        select(torch.tensor([1.0, math.nan, 3.0]), 1, generator())
    assert select(good, 0, generator()).tolist() == []
    assert select(good, 3, generator()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf, True, "1"])
def test_sampled_refuses_temperatures(temperature):
    with pytest.raises(ConfigError, match="temperature="):
        sampled(temperature)


def test_other_refusals():
    with pytest.raises(StateError, match=r"-2\.0"):
        sampled()(torch.tensor([1.0, -2.0]), 1, generator())
    with pytest.raises(ConfigError, match="2 groups for 3 scores"):
        top_k_per(torch.tensor([0, 1]))(torch.rand(3), 1, generator())
    with pytest.raises(ConfigError, match="from 0"):
        top_k_per(torch.tensor([0, -1]))
    with pytest.raises(ConfigError, match="k=-1"):
        Best.none(-1)
    with pytest.raises(ConfigError, match="2 indices for 3 scores"):
        Best.none(1).merged(torch.rand(3), torch.arange(2))
    with pytest.raises(StateError, match="NaN"):
        Best.none(1).merged(torch.tensor([math.nan]), torch.arange(1))
