"""The packed layer inside torch.compile."""

from __future__ import annotations

import shutil

import pytest
import torch
from kernel_cases import case
from torch import Tensor, nn

from realloc.errors import StateError
from realloc.kernels import graph
from realloc.kernels.ops import packed_linear, packed_weight
from realloc.kernels.taps import Tap

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize(("block", "whole", "compute"), [((1, 1), True, 0), ((1, 1), False, 1), ((2, 4), True, 0)])
def test_opcheck(block, whole, compute):
    one = case((12, 8), block=block, whole=whole, compute=compute)
    torch.library.opcheck(graph.packed_linear, one.linear(), test_utils=CHECKS)
    torch.library.opcheck(graph.packed_linear, one.changed(bias=None, x=one.x.detach()).linear(), test_utils=CHECKS)
    torch.library.opcheck(graph.packed_weight, one.weight(), test_utils=CHECKS)


class Pooled(nn.Module):
    """Two packed layers over one pool, as a prepared model holds them."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.pool = nn.Parameter(torch.zeros(60, 1, dtype=dtype))
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (12, 6)])
        self.register_buffer("extents", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(60, dtype=torch.int32))
        self.register_buffer("rows", torch.zeros(13 + 7, dtype=torch.int32))
        self.register_buffer("compute", torch.zeros(2, dtype=torch.int8))
        self.taps = [Tap(listens=True), Tap(listens=True)]
        self.place(0)

    @torch.no_grad()
    def place(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.pool.copy_(torch.randn(60, 1, generator=draw))
        first = 20 + 5 * seed
        for site, (height, width, count, start) in enumerate([(12, 8, first, 0), (6, 12, 55 - first, 13)]):
            places = torch.randperm(height * width, generator=draw)[:count].sort().values
            offset = 0 if site == 0 else first
            self.columns[offset : offset + count] = (places % width).int()
            counts = torch.bincount(places // width, minlength=height).cumsum(0)
            self.rows[start + 1 : start + 1 + height] = counts.int()
            self.extents[site + 1] = offset + count

    def forward(self, x: Tensor) -> Tensor:
        for site, (height, width, start) in enumerate([(12, 8, 0), (6, 12, 13)]):
            x = packed_linear(
                x, self.pool, self.biases[site], True, self.extents, site, self.rows[start : start + height + 1],
                self.columns, self.compute, height, width, 1, 1, self.taps[site].number,
            ).relu()  # fmt: skip
        return x


def both(model: Pooled, compiled: nn.Module, x: Tensor) -> None:
    results = []
    for call in (model, compiled):
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        out = call(inputs)
        out.square().sum().backward()
        results.append([out.detach(), inputs.grad, model.pool.grad, *(b.grad for b in model.biases)])
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(plain, fast)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, when inductor is imported
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("gcc"), reason="no C compiler"))],
)
def test_a_model_compiles_whole_and_no_move_recompiles_it(backend):
    torch._dynamo.reset()
    model = Pooled()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.randn(9, 8, dtype=torch.float64)
    both(model, compiled, x)
    touched = [tap.touched for tap in model.taps]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2, 3):
            model.place(seed)
            both(model, compiled, x)
        model.compute.fill_(1)
        both(model, compiled, x)
    assert [tap.touched for tap in model.taps] == [t + 8 for t in touched]


def test_an_armed_tap_copies_out_of_a_compiled_graph():
    torch._dynamo.reset()
    model = Pooled()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(9, 8, dtype=torch.float64)
    model.taps[0].armed = True
    compiled(x).sum().backward()
    ((seen, gy),) = model.taps[0].pairs
    assert torch.equal(seen, x) and seen.data_ptr() != x.data_ptr() and gy.shape == (9, 12)


def test_the_dense_weight_compiles():
    torch._dynamo.reset()
    one = case((12, 8), whole=True)

    def call(values: Tensor) -> Tensor:
        return packed_weight(*one.changed(values=values).weight()[:-1], 0).square().sum()

    fast = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(call(one.values), one.values), torch.autograd.grad(fast(one.values), one.values)
    )


def test_the_operator_itself_refuses_a_second_derivative():
    one = case()
    (gx,) = torch.autograd.grad(graph.packed_linear(*one.linear()).sum(), one.x, create_graph=True)
    with pytest.raises(StateError, match="second derivative"):
        gx.sum().backward()
