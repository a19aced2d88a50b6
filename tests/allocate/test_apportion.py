import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.allocate.apportion import apportion
from realloc.errors import ConfigError

weights = st.one_of(
    st.just(0.0),
    st.just(1.0),
    st.floats(0, 10),
    st.floats(0, 1e300, allow_subnormal=True),
    st.sampled_from([1e-300, 5e-324, 1e300]),
    st.integers(0, 10**18),
)
sites = st.tuples(weights, st.integers(0, 20), st.integers(0, 50))


@settings(max_examples=300, deadline=None)
@given(st.lists(sites, min_size=1, max_size=8), st.integers(0, 10**6))
def test_exact_and_within_bounds_for_any_weights(drawn, pick):
    share = [w for w, _, _ in drawn]
    least = [low for _, low, _ in drawn]
    most = [low + extra for _, low, extra in drawn]
    total = sum(least) + pick % (sum(most) - sum(least) + 1)
    result = apportion(share, total, least, most)
    assert sum(result) == total
    assert all(type(n) is int for n in result)
    assert all(low <= n <= high for low, n, high in zip(least, result, most, strict=True))
    assert result == apportion(share, total, least, most)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 500))
def test_without_bounds_it_is_plain_largest_remainder(share, total):
    if not sum(share):
        share = [1] * len(share)
    quota = [Fraction(w * total, sum(share)) for w in share]
    expected = [math.floor(q) for q in quota]
    order = sorted(range(len(share)), key=lambda i: (-(quota[i] - expected[i]), i))
    for i in order[: total - sum(expected)]:
        expected[i] += 1
    assert apportion(share, total, [0] * len(share), [10**9] * len(share)) == tuple(expected)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=7), st.integers(0, 400))
def test_surplus_is_solved_again_as_erk_does(drawn, pick):
    """The classic loop: whoever overflows becomes full, the others share the rest in proportion, until nobody does."""
    share, most = [w for w, _ in drawn], [m for _, m in drawn]
    total = pick % (sum(most) + 1)
    full: set[int] = set()
    while True:
        left = total - sum(most[i] for i in full)
        weight = sum(share[i] for i in range(len(share)) if i not in full)
        quota = [Fraction(most[i]) if i in full else Fraction(share[i] * left, weight) for i in range(len(share))]
        over = {i for i in range(len(share)) if quota[i] > most[i]}
        if not over:
            break
        full |= over
    result = apportion(share, total, [0] * len(share), most)
    assert all(abs(n - q) < 1 for n, q in zip(result, quota, strict=True))


def test_ties_go_to_the_lower_index():
    assert apportion([1, 1, 1], 5, [0] * 3, [9] * 3) == (2, 2, 1)
    assert apportion([0, 0, 0], 5, [0] * 3, [9] * 3) == (2, 2, 1)


def test_weight_zero_gets_its_least_until_the_others_are_full():
    assert apportion([0, 1, 0], 6, [1, 0, 0], [9, 9, 9]) == (1, 5, 0)
    assert apportion([0, 1, 0], 14, [1, 0, 0], [9, 9, 9]) == (3, 9, 2)


def test_huge_and_tiny_weights_do_not_overflow():
    assert apportion([1e308, 1e308, 5e-324], 4, [0, 0, 1], [9, 9, 9]) == (2, 1, 1)


def test_many_sites_are_quick():
    n = 2000
    share = [math.sin(i) ** 2 * 10 ** (i % 30) for i in range(n)]
    result = apportion(share, 50_000, [1] * n, [10 + i % 90 for i in range(n)])
    assert sum(result) == 50_000


def test_nothing_to_share():
    assert apportion([], 0, [], []) == ()
    assert apportion([2.0], 0, [0], [0]) == (0,)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1], 5, [0], [4]), "total=5.*pass 0 to 4"),
        (([1, 1], 1, [1, 1], [4, 4]), "total=1.*pass 2 to 8"),
        (([1], -1, [0], [4]), "total=-1"),
        (([-1.0], 1, [0], [4]), "weight 0 is -1.0"),
        (([1, math.nan], 1, [0, 0], [4, 4]), "weight 1 is nan"),
        (([math.inf], 1, [0], [4]), "weight 0 is inf"),
        (([1], 1, [3], [2]), "least=3 above most=2"),
        (([1, 2], 1, [0], [2]), "2 weights, 1 least"),
    ],
)
def test_refuses(arguments, says):
    with pytest.raises(ConfigError, match=says):
        apportion(*arguments)
