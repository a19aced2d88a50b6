"""Moving slots in place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.errors import StateError
from realloc.kernels import reference
from realloc.kernels.gather import gather_slots

DTYPES = [torch.float32, torch.float64, torch.int32, torch.int64, torch.bfloat16, torch.bool]


@given(
    n=st.sampled_from([0, 1, 63, 100, 2000]), share=st.sampled_from([0.0, 0.3, 1.0]), column=st.booleans(),
    dtype=st.sampled_from(DTYPES), given_fresh=st.booleans(), seed=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=80, deadline=None, derandomize=True)
def test_agrees_with_the_reference_in_the_same_storage(n, share, column, dtype, given_fresh, seed):
    draw = torch.Generator().manual_seed(seed)
    source = torch.randperm(2 * n, generator=draw)[:n].sort().values.clamp(max=max(n - 1, 0))
    source[torch.rand(n, generator=draw) < share] = -1
    tensor = torch.randint(0, 100, (n, 1) if column else (n,), generator=draw).to(dtype)
    fresh = torch.randint(0, 100, (n,), generator=draw).to(dtype)
    starts = [fresh, 1.0] if given_fresh else [1.0, 2.0]
    tensors = [tensor, torch.randint(0, 100, tensor.shape, generator=draw).to(dtype)]
    wanted = [t.clone() for t in tensors]
    addresses, versions = [t.data_ptr() for t in tensors], [t._version for t in tensors]
    gather_slots(list(zip(tensors, starts, strict=True)), source)
    for one, start in zip(wanted, starts, strict=True):
        reference.gather_slots(one, source, start)
    assert all(torch.equal(t, one) for t, one in zip(tensors, wanted, strict=True))
    assert [t.data_ptr() for t in tensors] == addresses
    assert all(t._version > version for t, version in zip(tensors, versions, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_strided_tensor_is_moved_in_its_own_memory(dtype):
    """A gradient may be a view into a bucket or come with odd strides: what lies between stays."""
    source = torch.tensor([2, -1, 0, 0])
    for make in (lambda base: base[:, 1], lambda base: base[:, 1:2], lambda base: base[::2, 0]):
        base = torch.randint(0, 50, (8, 3), generator=torch.Generator().manual_seed(1)).to(dtype)
        view = make(base)[:4]
        whole, wanted = base.clone(), view.clone()
        reference.gather_slots(wanted, source, 1)
        gather_slots([(view, 1)], source)
        assert torch.equal(view, wanted)
        make(whole)[:4] = wanted
        assert torch.equal(base, whole)


def test_tensors_of_different_sizes_move_together():
    state = [torch.arange(3.0), torch.arange(3.0, dtype=torch.float64), torch.arange(3, dtype=torch.bfloat16)]
    gather_slots([(t, 7) for t in state], torch.tensor([2, -1, 0]))
    assert [t.tolist() for t in state] == [[2, 7, 0]] * 3


def test_nan_moves_as_it_is():
    tensor = torch.tensor([1.0, float("nan"), float("inf")])
    gather_slots([(tensor, float("nan"))], torch.tensor([1, 2, -1]))
    assert tensor[0].isnan() and tensor[1].isinf() and tensor[2].isnan()


def test_a_large_integer_keeps_every_bit():
    tensor = torch.tensor([2**62 + 1, -1, 0])
    gather_slots([(tensor, 7)], torch.tensor([1, 0, -1]))
    assert tensor.tolist() == [-1, 2**62 + 1, 7]


def test_a_parameter_moves_under_no_grad():
    pool = torch.nn.Parameter(torch.arange(4.0).unsqueeze(1))
    gather_slots([(pool, 0.0)], torch.tensor([3, 2, 1, -1]))
    assert pool.flatten().tolist() == [3, 2, 1, 0]


def test_wrong_sources_are_refused():
    with pytest.raises(ValueError, match="slots"):
        gather_slots([(torch.zeros(3), 0.0)], torch.zeros(2, dtype=torch.int64))
    with pytest.raises(StateError):
        gather_slots([(torch.zeros(3), 0.0)], torch.tensor([0, 3, 1]))
