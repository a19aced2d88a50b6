"""Gradient of units that are not held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.errors import StateError
from realloc.kernels import reference
from realloc.kernels.candidates import candidate_gradient, row_block_gradient


def pairs(count: int, batch: int, width: int, height: int, dtype: torch.dtype):
    draw = torch.Generator().manual_seed(count)
    return [
        (
            torch.randn(batch, width, generator=draw, dtype=dtype),
            torch.randn(batch, height, generator=draw, dtype=dtype),
        )
        for _ in range(count)
    ]


@given(
    count=st.integers(1, 3), batch=st.sampled_from([0, 1, 63, 130]), block=st.sampled_from([(1, 1), (2, 4), (3, 1)]),
    units=st.sampled_from([0, 1, 40, 200]), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_candidates_agree_with_the_reference(count, batch, block, units, dtype):
    seen = pairs(count, batch, 64, 60, dtype)
    places = torch.randperm(60 // block[0] * (64 // block[1]), generator=torch.Generator().manual_seed(units))[:units]
    places = places.sort().values
    at = (places // (64 // block[1]), places % (64 // block[1]), *block)
    found, wanted = candidate_gradient(seen, places, *block), reference.candidate_gradient(seen, *at)
    near = 1e-3 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(found, wanted, rtol=near, atol=near)


def test_captured_pairs_may_be_strided():
    x, gy = torch.randn(64, 20, dtype=torch.float64).t(), torch.ones(1, 1, dtype=torch.float64).expand(20, 60)
    rows, columns = torch.tensor([0, 5, 5]), torch.tensor([3, 1, 63])
    found = candidate_gradient([(x, gy)], rows * 64 + columns)
    torch.testing.assert_close(found, reference.candidate_gradient([(x, gy)], rows, columns, 1, 1))


@pytest.mark.parametrize("places", [[0, 60 * 64], [-1, 3], [70, 2]])
def test_a_place_outside_the_layer_or_out_of_order_is_refused(places):
    with pytest.raises(StateError):
        candidate_gradient(pairs(1, 4, 64, 60, torch.float32), torch.tensor(places))


@pytest.mark.parametrize("count", [1, 3])
def test_a_block_of_rows(count):
    seen = pairs(count, 20, 64, 60, torch.float64)
    torch.testing.assert_close(row_block_gradient(seen, 7, 19), reference.row_block_gradient(seen, 7, 19))
