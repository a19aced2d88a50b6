"""Shares under costs: never above the budget, nothing affordable left out, in order of worth."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.allocate.afford import afford, level
from realloc.errors import ConfigError, StateError

scores = st.lists(st.integers(-5, 9).map(float), max_size=5).map(lambda mine: sorted(mine, reverse=True))
costly = st.lists(st.tuples(scores, st.integers(1, 12)), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(costly, st.integers(0, 100))
def test_what_is_left_over_pays_for_nothing_that_was_left_out(sites, budget):
    worth, costs = [mine for mine, _ in sites], [cost for _, cost in sites]
    counts = afford(worth, costs, budget)
    rest = budget - sum(n * cost for n, cost in zip(counts, costs, strict=True))
    assert rest >= 0
    assert all(n == len(mine) or cost > rest for n, mine, cost in zip(counts, worth, costs, strict=True))


@settings(max_examples=300, deadline=None)
@given(st.lists(scores, min_size=1, max_size=4), st.integers(1, 7), st.integers(0, 20))
def test_at_equal_cost_it_is_the_best_there_is(worth, cost, units):
    counts = afford(worth, [cost] * len(worth), cost * units)
    total = sum(sum(mine[:n]) for mine, n in zip(worth, counts, strict=True))
    most = min(units, sum(map(len, worth)))
    best = max(
        sum(sum(mine[:n]) for mine, n in zip(worth, choice, strict=True))
        for choice in product(*(range(len(mine) + 1) for mine in worth))
        if sum(choice) == most
    )
    assert sum(counts) == most and total == best


@settings(max_examples=200, deadline=None)
@given(costly, st.integers(0, 100))
def test_a_unit_left_out_is_worth_less_or_was_not_paid_for_in_its_turn(sites, budget):
    """Against the rule written out: go down one list of all units, take what is paid for."""
    worth, costs = [mine for mine, _ in sites], [cost for _, cost in sites]
    units = sorted((-score, site, place) for site, mine in enumerate(worth) for place, score in enumerate(mine))
    counts, shut = [0] * len(sites), set()
    for _, site, _ in units:
        if site not in shut and costs[site] <= budget:
            counts[site] += 1
            budget -= costs[site]
        else:
            shut.add(site)
    assert list(afford(worth, costs, sum(n * c for n, c in zip(counts, costs, strict=True)) + budget)) == counts


def test_scores_that_cannot_be_ordered_are_refused():
    for worth in ([[1.0, 2.0]], [[math.nan]], [[1.0, math.nan]]):
        with pytest.raises(StateError, match="scores must fall"):
            afford(worth, [1], 5)


bounded = st.tuples(st.floats(0, 10), st.integers(1, 12), st.integers(0, 3), st.integers(0, 6))


@settings(max_examples=300, deadline=None)
@given(st.lists(bounded, min_size=1, max_size=6), st.integers(0, 200))
def test_levels_keep_their_bounds_and_the_budget(sites, extra):
    weights, costs, least = [s[0] for s in sites], [s[1] for s in sites], [s[2] for s in sites]
    most = [s[2] + s[3] for s in sites]
    budget = sum(n * c for n, c in zip(least, costs, strict=True)) + extra
    counts = level(weights, costs, budget, least, most)
    rest = budget - sum(n * c for n, c in zip(counts, costs, strict=True))
    assert rest >= 0 and all(low <= n <= high for n, low, high in zip(counts, least, most, strict=True))
    rows = zip(counts, costs, most, weights, strict=True)
    assert all(n == high or cost > rest or weight == 0 for n, cost, high, weight in rows)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 9), st.integers(0, 30))
def test_even_weights_make_even_levels(costs, rank, extra):
    counts = level([1] * len(costs), costs, rank * sum(costs) + extra, [0] * len(costs), [50] * len(costs))
    assert min(counts) >= rank
    if extra < sum(costs):
        assert max(counts) - min(counts) <= 1 + extra // min(costs)
    if not extra:
        assert set(counts) == {rank}


def test_a_budget_below_the_least_is_refused():
    with pytest.raises(ConfigError, match="does not pay for the 12"):
        level([1, 1], [4, 4], 11, [2, 1], [3, 3])
