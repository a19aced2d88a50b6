"""Two rows share a key exactly when a frozen prefix computes the same for both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from realloc.cache.keys import examples_of
from realloc.errors import StateError

TEXT = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def padded(text: list[int], left: int, right: int, fill: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[fill] * left + text + [fill] * right])
    mask = torch.tensor([[0] * left + [1] * len(text) + [0] * right])
    return ids, mask


@settings(max_examples=200, deadline=None)
@given(TEXT, TEXT, st.integers(0, 3), st.integers(0, 3), st.integers(0, 40))
def test_padding_does_not_count_and_everything_else_does(one, two, right, other, fill):
    a, b = examples_of(*padded(one, 0, right))[0], examples_of(*padded(two, 0, other, fill))[0]
    assert (a.key == b.key) == (one == two)
    assert (a.first, a.length) == (0, len(one))


@settings(max_examples=100, deadline=None)
@given(TEXT, st.integers(0, 3), st.integers(0, 3))
def test_a_model_that_counts_columns_sees_left_padding_and_one_that_counts_tokens_does_not(text, left, right):
    plain, shifted = padded(text, 0, 0), padded(text, left, right)
    by_column = [examples_of(*rows)[0] for rows in (plain, shifted)]
    assert (by_column[0].key == by_column[1].key) == (left == 0)
    assert (by_column[1].first, by_column[1].length) == (left, len(text))
    counted = [examples_of(ids, mask, positions=mask.cumsum(1))[0] for ids, mask in (plain, shifted)]
    assert counted[0].key == counted[1].key


@settings(max_examples=100, deadline=None)
@given(TEXT, st.integers(1, 3), st.integers(0, 40), st.integers(0, 40))
def test_what_stands_left_of_the_tokens_counts_unless_positions_are_given(text, left, one, two):
    """A model may count from there what is no padding token."""
    a, b = padded(text, left, 1, one), padded(text, left, 2, two)
    assert (examples_of(*a)[0].key == examples_of(*b)[0].key) == (one == two)
    given = [examples_of(ids, mask, positions=mask.cumsum(1))[0].key for ids, mask in (a, b)]
    assert given[0] == given[1]


def test_positions_that_are_given_are_not_those_that_a_model_finds():
    ids, mask = padded([4, 5, 6], 0, 1)
    assert examples_of(ids, mask)[0].key != examples_of(ids, mask, positions=torch.arange(4)[None])[0].key


def test_where_one_number_ends_and_another_begins_counts():
    """Tokens, columns and what stands left of them are the same numbers here, in another order of rows."""
    one = examples_of(torch.tensor([[0, 1, 9]]), torch.tensor([[0, 0, 1]]))[0]
    assert one.key != examples_of(torch.tensor([[9, 2]]))[0].key


def test_types_count():
    ids, mask = padded([4, 5, 6], 0, 1)
    keys = {examples_of(ids, mask)[0].key}
    for types in ([0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]):
        keys.add(examples_of(ids, mask, torch.tensor([types]))[0].key)
    assert len(keys) == 4
    beyond = torch.tensor([[0, 0, 1, 9]])  # types of padding do not
    assert examples_of(ids, mask, beyond)[0].key in keys


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_the_width_of_the_integers_does_not_count(dtype):
    ids, mask = padded([4, 5, 6], 1, 1)
    assert examples_of(ids, mask)[0] == examples_of(ids.to(dtype), mask.bool())[0]


@pytest.mark.parametrize(
    ("ids", "mask", "word"),
    [
        (torch.ones(2, 3, 4), None, r"shape \(2, 3, 4\).*pass rows of tokens, or train with cache=None"),
        (torch.ones(2, 3), torch.ones(2, 4), "mask has shape"),
        (
            torch.ones(2, 4),
            torch.ones(2, 1, 4, 4),
            r"\(2, 1, 4, 4\).*no plain padding mask; pass a mask of.*cache=None",
        ),
        (torch.ones(2, 3), torch.tensor([[1, 1, 1], [1, 0, 1]]), "mask of row 1 is no plain padding"),
        (torch.ones(2, 3), torch.tensor([[1, 1, 1], [0, 0, 0]]), "row 1 of the batch has no token"),
        (torch.ones(1, 0), None, "row 0 of the batch has no token"),
    ],
)
def test_what_no_key_can_stand_for_is_refused(ids, mask, word):
    with pytest.raises(StateError, match=word):
        examples_of(ids.long(), mask)
