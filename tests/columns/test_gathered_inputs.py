"""A layer of whole columns computes what a dense layer does whose other columns are zero, and so do its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.kernels import reference
from realloc.kernels.ops import packed_linear, packed_weight

OUT, IN = 6, 9


def site(held: list[int], dtype: torch.dtype = torch.float64, before: int = 0):
    """A site of whole columns in a pool, with so many units of another site before it."""
    values = torch.randn((before + len(held) + 1) * OUT, 1, dtype=torch.float64).to(dtype)
    extents = torch.tensor([0, before, before + len(held)])
    columns = torch.tensor([*range(before), *held, 0], dtype=torch.int32)
    pointer = torch.tensor([0, len(held)], dtype=torch.int32)
    mine = slice(before * OUT, (before + len(held)) * OUT)
    weight = torch.zeros(OUT, IN, dtype=dtype)
    weight[:, held] = values[mine, 0].view(-1, OUT).t()
    return values, weight, (extents, 1, pointer, columns), mine


@settings(max_examples=25, deadline=None)
@given(
    held=st.sets(st.integers(0, IN - 1)), whole=st.booleans(), biased=st.booleans(), needs=st.booleans(),
    shape=st.sampled_from([(5, IN), (IN,), (0, IN), (2, 3, IN)]), before=st.integers(0, 2),
)  # fmt: skip
def test_function_and_gradients_are_those_of_the_dense_layer(held, whole, biased, needs, shape, before):
    torch.manual_seed(0)
    values, weight, (extents, number, pointer, columns), mine = site(sorted(held), before=before)
    given_values = (values if whole else values[mine]).clone().requires_grad_()
    bias = torch.randn(OUT, dtype=torch.float64, requires_grad=True) if biased else None
    x = torch.randn(shape, dtype=torch.float64, requires_grad=needs)
    compute = torch.zeros(2, dtype=torch.int8)
    out = packed_linear(x, given_values, bias, whole, extents, number, pointer, columns, compute, OUT, IN, OUT, 1, 0)
    dense = weight.clone().requires_grad_()
    wanted = F.linear(x, dense, bias)
    assert torch.allclose(out, wanted, rtol=1e-12, atol=1e-13)
    inputs = [t for t in (x if needs else None, bias) if t is not None]
    found = torch.autograd.grad(out.square().sum(), [given_values, *inputs])
    asked = torch.autograd.grad(wanted.square().sum(), [dense, *inputs])
    full = torch.zeros_like(given_values)
    full[mine if whole else slice(None)] = asked[0][:, sorted(held)].t().reshape(-1, 1)
    for one, two in zip(found, [full, *asked[1:]], strict=True):
        assert torch.allclose(one, two, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("held", [[], [4], [0, 3, 8], [*range(IN)]], ids=str)
def test_the_dense_weight_and_its_gradient(held):
    values, weight, (extents, number, pointer, columns), mine = site(held)
    values.requires_grad_()
    found = packed_weight(values, True, extents, number, pointer, columns, OUT, IN, OUT, 1, 0)
    assert torch.equal(found, weight)
    plain = reference.packed_weight(values, True, extents, number, pointer, columns, OUT, IN, OUT, 1)
    assert torch.equal(found, plain)
    outer = torch.randn(OUT, IN, dtype=torch.float64)
    found.backward(outer)
    assert torch.equal(values.grad[mine, 0].view(-1, OUT), outer[:, held].t())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_dtype_and_strides(dtype):
    torch.manual_seed(0)
    values, weight, (extents, number, pointer, columns), _ = site([1, 2, 7], dtype)
    x = torch.randn(IN, 4).to(dtype).t()
    compute = torch.zeros(2, dtype=torch.int8)
    out = packed_linear(x, values, None, True, extents, number, pointer, columns, compute, OUT, IN, OUT, 1, 0)
    near = 1e-6 if dtype == torch.float32 else 2e-2
    assert out.dtype == dtype and torch.allclose(out, F.linear(x, weight), rtol=near, atol=near)
