import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.errors import ConfigError
from realloc.kernels.search import draw
from realloc.observe.candidates import Candidates, everything, sampled


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def places_of(rule: Candidates, held: torch.Tensor, capacity: int, source: torch.Generator, wanted: int = 0):
    return draw([rule.lot(held, capacity, source, wanted)])[0]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from([0.01, 0.3, 1.0, 2.5, 100.0]),
    st.integers(0, 9),
    st.integers(0, 99),
)
def test_exact_sorted_distinct_and_never_held(capacity, held, factor, wanted, seed):
    held = min(held, capacity)
    places = torch.randperm(capacity, generator=generator(seed))[:held].sort().values
    for rule in (everything(), sampled(factor)):
        result = places_of(rule, places, capacity, generator(seed), wanted).tolist()
        assert result == sorted(set(result)) and not set(result) & set(places.tolist())
        assert all(0 <= place < capacity for place in result)
        assert len(result) == rule.count(held, capacity, wanted)
        assert result == places_of(rule, places, capacity, generator(seed), wanted).tolist()
    free = capacity - held
    assert everything().count(held, capacity) == free
    assert sampled(factor).count(held, capacity, wanted) == min(free, max(math.floor(factor * held), wanted))


def test_everything_is_the_complement():
    held = torch.tensor([0, 1, 5, 9])
    assert places_of(everything(), held, 10, generator()).tolist() == [2, 3, 4, 6, 7, 8]
    assert places_of(everything(), torch.zeros(0, dtype=torch.int32), 3, generator()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("held", [[0, 3, 4], [7, 8, 9, 10, 11]])
def test_each_place_is_equally_likely(held):
    held, source, count, rule = torch.tensor(held), generator(1), Counter(), sampled(1.0)
    for _ in range(3000):
        count.update(places_of(rule, held, 12, source).tolist())
    expected = 3000 * len(held) / (12 - len(held))
    assert len(count) == 12 - len(held)
    assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in count.values())


def test_a_grid_too_large_to_write_out():
    capacity = 10**12
    held = torch.arange(1000) * 7
    result = places_of(sampled(3.0), held, capacity, generator(2))
    assert len(result) == 3000 and not bool(torch.isin(result, held).any())
    assert bool((result.diff() > 0).all()) and int(result.max()) < capacity


def test_a_rule_can_be_compared_and_printed():
    assert str(everything()) == "everything" and str(sampled(2)) == "sampled(2)"
    assert sampled(2) == sampled(2.0) != everything()


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf, True, "2"])
def test_refuses(factor):
    with pytest.raises(ConfigError, match="factor="):
        sampled(factor)
