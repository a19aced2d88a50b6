"""The layer itself: outputs and gradients against LoRA written out, zero ranks, precision, reads of a weight."""

from __future__ import annotations

import copy

import pytest
import torch
from plain import DOUBLE, Plain, batch, made, net, step_on, trainable
from torch import nn
from torch.utils.checkpoint import checkpoint

import realloc
import realloc.kernels.rank_product as product
from realloc import methods
from realloc.errors import StateError
from realloc.kernels.rank_product import rank_linear, rank_weight


def slots_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cat([a.reshape(-1), b.reshape(-1)])[:, None].requires_grad_()


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "rows", [1, 2, 6]
)  # 20 weights against 9 numbers a row: from 3 rows on the ranks are added first
def test_gradcheck(rank, bias, rows):
    torch.manual_seed(1)
    x = torch.randn(rows, 1, 5, dtype=DOUBLE, requires_grad=True)
    weight = torch.randn(4, 5, dtype=DOUBLE, requires_grad=True)
    offset = torch.randn(4, dtype=DOUBLE, requires_grad=True) if bias else None
    slots = slots_of(torch.randn(rank, 5, dtype=DOUBLE), torch.randn(rank, 4, dtype=DOUBLE))
    torch.autograd.gradcheck(lambda *t: rank_linear(t[0], t[1], offset, t[2], 0.7, 0), (x, weight, slots))
    torch.autograd.gradcheck(lambda *t: rank_weight(t[0], t[1], 0.7, 0), (weight, slots))
    if offset is not None:
        torch.autograd.gradcheck(lambda t: rank_linear(x, weight, t, slots, 0.7, 0), (offset,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_and_few_give_the_same(dtype, monkeypatch):
    """In half precision the ranks are never added to the weight first: the sum would round them away."""
    torch.manual_seed(1)
    x, weight = torch.randn(64, 8, dtype=dtype), torch.randn(6, 8, dtype=dtype)
    slots = (torch.randn(28, 1, dtype=torch.float64) / 100).to(dtype)
    found = []
    for folds in (product._folds, lambda rows, weight: False):
        monkeypatch.setattr(product, "_folds", folds)
        mine, its = x.clone().requires_grad_(), slots.clone().requires_grad_()
        y = rank_linear(mine, weight, None, its, 1.0, 0)
        y.float().square().sum().backward()
        found.append((y, mine.grad, its.grad))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two) if dtype == torch.bfloat16 else torch.allclose(one, two, atol=1e-4)
    assert not torch.equal(found[0][0], x @ weight.t())


def test_it_is_differentiated_once():
    x = torch.randn(2, 5, dtype=DOUBLE, requires_grad=True)
    slots = slots_of(torch.randn(1, 5, dtype=DOUBLE), torch.randn(1, 4, dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(
        rank_linear(x, torch.randn(4, 5, dtype=DOUBLE), None, slots, 1.0, 0).sum(), x, create_graph=True
    )
    with pytest.raises(StateError, match="second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("bias", [True, False])
def test_training_is_that_of_lora_written_out(bias):
    """Values, gradients and AdamW's moments, step by step."""
    model, optimizer, handle = made(methods.lora(rank=3, scale=2.0), model=net(bias=bias))
    sites = handle.sites
    other = net(bias=bias)
    for name in ("0", "2"):
        linear = other[int(name)]
        other[int(name)] = Plain(linear.weight, linear.bias, *sites[f"{name}.weight"].factors(), 2.0)
    reference = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-2)
    for number in range(6):
        one, two = step_on(model, optimizer, number), step_on(other, reference, number)
        assert one == pytest.approx(two, rel=1e-12)
        for name in ("0", "2"):
            site, plain = sites[f"{name}.weight"], other[int(name)]
            for mine, theirs in zip(site.factors(), (plain.a, plain.b), strict=True):
                assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
            state = optimizer.state[site.pool.parameter]
            for key in ("exp_avg", "exp_avg_sq"):
                for mine, theirs in zip(site.parts_of(state[key]), (plain.a, plain.b), strict=True):
                    assert torch.allclose(mine, reference.state[theirs][key], rtol=0, atol=1e-14)
    assert torch.allclose(model[4].weight, other[4].weight, rtol=0, atol=1e-12)


def test_prepare_leaves_the_function_and_freezes_the_rest():
    model, x = net(), batch(0)[0]
    before = model(x)
    table = realloc.prepare(model, methods.lora(rank=3))
    assert torch.equal(model(x), before)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"realloc_pool0", "4.weight", "4.bias"}
    assert "trains in full beside the ranks: 4" in str(table) and "the task head" in str(table)
    assert model.realloc_pool0.shape == (3 * (6 + 10 + 10 + 14), 1) and table.budget == 120


def test_a_layer_without_ranks_is_the_layer_and_counts_as_taking_part():
    method = methods.lora(budget=16)  # one rank of the first layer, none of the second
    model, optimizer, handle = made(method)
    assert [site.rank for site in handle.sites.values()] == [1, 0]
    x = batch(0)[0]
    assert torch.allclose(model(x), net()(x), rtol=0, atol=1e-14)
    step_on(model, optimizer, 0)
    assert handle.sites["2.weight"].held == 0 and handle.held == 16
    assert not torch.equal(model(x), net()(x))


def test_no_rank_anywhere_still_uses_the_pool():
    method = methods.rank_gradient(rank=2, start=0.0)
    model, _, handle = made(method)
    assert handle.held == 0 and handle.parked == handle.budget == 80
    model(batch(0)[0]).sum().backward()
    assert model.realloc_pool0.grad is not None and not model.realloc_pool0.grad.any()


def test_the_weight_reads_with_its_ranks_and_trains_through_it():
    model, optimizer, handle = made(methods.lora(rank=2, scale=0.5))
    for number in range(3):
        step_on(model, optimizer, number)
    site = handle.sites["0.weight"]
    a, b = site.factors()
    base = dict(model.named_parameters())["0.weight"]
    assert torch.allclose(model[0].weight, base + 0.5 * b.t() @ a)
    optimizer.zero_grad()
    model[0].weight.square().sum().backward()
    whole = model[0].weight.detach().requires_grad_()
    whole.square().sum().backward()
    grads = site.parts_of(model.realloc_pool0.grad)
    assert torch.allclose(grads[0], 0.5 * b @ whole.grad) and torch.allclose(grads[1], 0.5 * a @ whole.grad.t())


def test_the_fast_path_of_a_transformer_sees_the_ranks():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.ModuleDict(
        {"body": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), "head": nn.Linear(8, 2)}
    )
    model.forward = lambda x: model["head"](model["body"](x))
    realloc.prepare(model, methods.lora(rank=2))
    with torch.no_grad():
        model.realloc_pool0.normal_()
    x = torch.randn(3, 5, 8)
    model.train()
    slow = model(x)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(x), slow, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_weight_read_in_a_compiled_graph_has_its_ranks():
    torch._dynamo.reset()
    model, optimizer, _ = made(methods.lora(rank=2, scale=0.5))
    step_on(model, optimizer, 0)
    read = torch.compile(lambda: model[0].weight * 1.0, fullgraph=True, backend="aot_eager")
    assert torch.allclose(read(), model[0].weight, rtol=0, atol=1e-14)
    optimizer.zero_grad()
    read().square().sum().backward()
    mine = model.realloc_pool0.grad.clone()
    optimizer.zero_grad()
    model[0].weight.square().sum().backward()
    assert torch.allclose(mine, model.realloc_pool0.grad, rtol=0, atol=1e-14)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_keeps_float32_ranks(dtype):
    model, optimizer, handle = made(methods.random_ranks(rank=2), model=net(dtype), optimizer=torch.optim.SGD)
    assert handle.sites["0.weight"].pool.parameter.dtype == torch.float32
    for number in range(9):
        step_on(model, optimizer, number)
    assert handle.moves >= 1 and model(batch(0, dtype)[0]).dtype == dtype


def test_autocast_computes_in_its_dtype():
    model, _, _ = made(methods.lora(rank=2), model=net(torch.float32))
    x = batch(0, torch.float32)[0]
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x)
        assert rough.dtype == torch.bfloat16
    rough.float().sum().backward()
    assert torch.allclose(rough.float(), exact, atol=0.05) and model.realloc_pool0.grad.dtype == torch.float32


def test_the_wrong_dtype_is_named():
    model, _, _ = made(methods.lora(rank=2))
    with pytest.raises(RuntimeError, match=r"0\.weight: input is torch\.float32, weight is torch\.float64"):
        model(batch(0, torch.float32)[0])


def test_a_frozen_layer_keeps_its_ranks_through_a_step():
    model, optimizer, handle = made(methods.lora(rank=2), weight_decay=0.5)
    step_on(model, optimizer, 0)
    model[0].requires_grad_(False)
    before = [part.clone() for part in handle.sites["0.weight"].factors()]
    second = handle.sites["2.weight"].factors()[0].clone()
    step_on(model, optimizer, 1)
    assert all(map(torch.equal, handle.sites["0.weight"].factors(), before))
    assert not torch.equal(handle.sites["2.weight"].factors()[0], second)


def test_a_move_between_forward_and_backward_is_an_error():
    model, optimizer, _ = made(methods.random_ranks(rank=2), gap=1)
    loss = model(batch(0)[0]).sum()
    step_on(model, optimizer, 0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_copy_computes_for_itself():
    model, optimizer, _ = made(methods.lora(rank=2))
    twin, x = copy.deepcopy(model), batch(0)[0]
    before = twin(x)
    step_on(model, optimizer, 0)
    assert torch.equal(twin(x), before) and not torch.equal(model(x), before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [methods.random_ranks(rank=3, drop=0.6), methods.rank_gradient(rank=3)])
def test_one_graph_the_same_numbers_no_recompilation_at_moves(method):
    torch._dynamo.reset()
    model, optimizer, handle = made(method, gap=2)
    twin, other, mine = made(method, gap=2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for number in range(20):
        stance = "default" if number < 2 else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            assert step_on(compiled, optimizer, number) == pytest.approx(step_on(twin, other, number), rel=1e-9)
    assert handle.moves == mine.moves >= 2
    torch._dynamo.reset()


def test_reset_is_refused_and_attaching_twice_too():
    model, optimizer, _ = made(methods.lora(rank=2))
    with pytest.raises(RuntimeError, match="detach"):
        model[0].reset_parameters()
    with pytest.raises(StateError):
        realloc.attach(model, optimizer, methods.lora(rank=2), schedule=realloc.every(1, total=2))
    assert trainable(model)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Sequential, on: bool) -> None:
        super().__init__()
        self.inner, self.on = inner, on

    def forward(self, x):
        if not self.on:
            return self.inner(x)
        return self.inner[4](checkpoint(self.inner[:4], x, use_reentrant=False))


@pytest.mark.parametrize("method", [methods.random_ranks(rank=3), methods.rank_gradient(rank=3)])
def test_checkpointed_and_accumulated_it_trains_the_same(method):
    ends = []
    for on in (False, True):
        model = Checkpointed(net(), on)
        model, optimizer, handle = made(method, model=model, gap=2, total=8)
        for number in range(8):
            optimizer.zero_grad()
            x, y = batch(number)
            for part in range(2):  # micro-batches
                ((model(x[part::2]) - y[part::2]).square().mean() / 2).backward()
            optimizer.step()
        assert handle.steps == 8 and handle.moves >= 1
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*ends, strict=True))
