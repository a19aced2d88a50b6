"""The packed layer against the plain reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, case

from realloc.errors import StateError
from realloc.kernels import reference
from realloc.kernels.ops import packed_linear, packed_weight

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


def agrees(one: Case) -> None:
    """Output and every gradient equal the reference's; a gradient has the shape of its tensor."""
    found, wanted = packed_linear(*one.linear()), reference.packed_linear(*one.linear())
    near = {"rtol": TOLERANCE[one.x.dtype], "atol": TOLERANCE[one.x.dtype]}
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, **near)
    inputs = [t for t in (one.x, one.values, one.bias) if t is not None and t.requires_grad]
    gy = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=wanted.dtype)
    for got, expected in zip(
        torch.autograd.grad(found, inputs, gy), torch.autograd.grad(wanted, inputs, gy), strict=True
    ):
        torch.testing.assert_close(got, expected, **near)


@given(
    shape=st.tuples(st.sampled_from([1, 2, 16, 17, 63, 100]), st.sampled_from([1, 3, 15, 16, 63, 100])),
    batch=st.sampled_from([(0,), (1,), (7,), (32,), (33,), (96,), (97,), (130,), (2, 3), (2, 3, 5)]),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    whole=st.booleans(),
    compute=st.sampled_from([0, 1]),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_single_weights_agree_with_the_reference(shape, batch, density, dtype, whole, compute, bias, seed):
    agrees(case(shape, batch, density, dtype, (1, 1), whole, compute, seed, bias))


@given(
    block=st.sampled_from([(1, 2), (2, 1), (4, 4), (16, 1), (1, 16), (3, 5)]),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.sampled_from([(1,), (40,), (129,)]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    whole=st.booleans(),
    compute=st.sampled_from([0, 1]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_blocks_agree_with_the_reference(block, grid, batch, density, dtype, whole, compute):
    agrees(case((grid[0] * block[0], grid[1] * block[1]), batch, density, dtype, block, whole, compute))


def test_a_large_layer_goes_to_several_threads_and_several_chunks():
    agrees(case((300, 500), (1500,), 0.1, torch.float32))


@pytest.mark.parametrize("missing", ["x", "values", "bias"])
def test_only_the_gradients_that_are_needed(missing):
    one = case((40, 30), (20,))
    agrees(one.changed(**{missing: getattr(one, missing).detach()}))


def test_strided_and_three_dimensional_inputs():
    one = case((40, 30), (4, 6))
    for x in (
        torch.randn(30, 24, dtype=torch.float64).t(),
        torch.randn(24, 60, dtype=torch.float64)[:, ::2],
        torch.randn(24, 31, dtype=torch.float64)[:, 1:],
        torch.randn(1, 30, dtype=torch.float64).expand(24, 30),
        torch.randn(6, 4, 30, dtype=torch.float64).transpose(0, 1),
        torch.randn(30, dtype=torch.float64),
    ):
        agrees(one.changed(x=x.requires_grad_()))


def test_an_expanded_gradient_of_the_output():
    one = case((40, 30), (20,))
    found = torch.autograd.grad(packed_linear(*one.linear()).sum(), (one.x, one.values, one.bias))
    wanted = torch.autograd.grad(reference.packed_linear(*one.linear()).sum(), (one.x, one.values, one.bias))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("block", [(1, 1), (2, 4)])
@pytest.mark.parametrize("compute", [0, 1])
def test_gradcheck(block, compute):
    one = case((6, 8), (3,), 0.5, block=block, whole=True, compute=compute)

    def call(x, values, bias):
        return packed_linear(*one.changed(x=x, values=values, bias=bias).linear())

    assert torch.autograd.gradcheck(call, (one.x, one.values, one.bias), fast_mode=False)


@pytest.mark.parametrize("block", [(1, 1), (4, 2)])
@pytest.mark.parametrize("whole", [False, True])
def test_the_dense_weight_and_its_gradient(block, whole):
    one = case((12, 8), block=block, whole=whole)
    found, wanted = packed_weight(*one.weight()), reference.packed_weight(*one.weight())
    assert torch.equal(found, wanted)
    gw = torch.randn(8, 12, dtype=found.dtype).t()
    (got,), (expected,) = torch.autograd.grad(found, one.values, gw), torch.autograd.grad(wanted, one.values, gw)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_by_scatter(dtype):
    one = case((16, 8), dtype=torch.float32)
    with torch.no_grad():
        half = one.changed(x=one.x.to(dtype), values=one.values.to(dtype), bias=one.bias.to(dtype))
        assert torch.equal(packed_linear(*half.linear()), reference.packed_linear(*half.linear()))


def test_nan_and_infinity_are_seen():
    one = case((40, 30), (20,), 1.0, torch.float32)
    for bad in (float("nan"), float("inf")):
        x, values = one.x.detach().clone(), one.values.detach().clone()
        x[3, 7] = bad
        out = packed_linear(*one.changed(x=x).linear())
        assert not out[3].isfinite().any() and out[4].isfinite().all()
        values[5] = bad
        assert not packed_linear(*one.changed(values=values).linear())[:, 0].isfinite().any()
    gy = torch.zeros(20, 40)
    gy[2, 4] = float("nan")
    gx, gv, gb = torch.autograd.grad(packed_linear(*one.linear()), (one.x, one.values, one.bias), gy)
    assert gx[2].isnan().all() and gx[3].isfinite().all()
    assert gv.view(40, 30)[4].isnan().all() and gv.view(40, 30)[3].isfinite().all() and gb[4].isnan()


def test_equal_bits_twice_and_with_any_number_of_threads():
    one = case((300, 500), (200,), 0.1, torch.float32)
    gy = torch.randn(200, 300)

    def bits():
        out = packed_linear(*one.linear())
        return [out, *torch.autograd.grad(out, (one.x, one.values, one.bias), gy)]

    threads, first = torch.get_num_threads(), bits()
    try:
        for count in (threads, 1, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(first, bits(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("wrong", [30, 2**30, -1])
def test_a_column_outside_the_layer_is_refused_and_not_read(wrong):
    one = case((40, 30), (20,), dtype=torch.float32)
    out = packed_linear(*one.linear())
    columns = one.columns.clone()
    columns[10] = wrong
    broken = one.changed(columns=columns)
    for compute in (0, 1):
        with pytest.raises(StateError, match="placement"):
            packed_linear(*broken.changed(compute=one.compute + compute).linear())
    with torch.no_grad():
        one.columns[10] = wrong
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_values_of_another_length_are_refused():
    one = case()
    with pytest.raises(ValueError, match="slots"):
        packed_linear(*one.changed(values=one.values[:-1]).linear())


def test_a_second_derivative_is_refused():
    one = case()
    (gx,) = torch.autograd.grad(packed_linear(*one.linear()).sum(), one.x, create_graph=True)
    with pytest.raises(StateError, match="second derivative"):
        gx.sum().backward()
    (gv,) = torch.autograd.grad(packed_weight(*one.weight()).sum(), one.values, create_graph=True)
    with pytest.raises(StateError, match="second derivative"):
        gv.sum().backward()


def test_a_move_between_two_steps_is_followed():
    one = case((40, 30), (20,), whole=True)
    agrees(one)
    other = case((40, 30), (20,), whole=True, seed=5, density=0.3)
    one.columns[: other.columns.numel()] = other.columns[: one.columns.numel()]
    one.rowptr.copy_(other.rowptr)
    one.extents.copy_(other.extents)
    agrees(one.changed(values=one.values.detach()[: int(one.extents[2]) + 2].requires_grad_()))
