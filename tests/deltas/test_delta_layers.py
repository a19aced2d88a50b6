"""The layer itself: outputs and gradients against W + S written out, precision, compiled graphs, reads of a weight."""

from __future__ import annotations

import copy

import pytest
import torch
from frozen import DOUBLE, batch, dense_of, made, net, step_on, trainable
from torch import nn
from torch.utils.checkpoint import checkpoint

import realloc
from realloc import methods
from realloc.errors import StateError
from realloc.methods.delta_method import DeltaMethod
from realloc.sites.delta import base_of


def filled(dtype=DOUBLE, density=0.3, shape=(5, 7), bias=True):
    """A layer with random values in its delta, its site, and W + S as a plain layer."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(*shape, bias=bias)).to(dtype)
    plain = copy.deepcopy(model)
    realloc.prepare(model, methods.shira(density=density).on("*"))
    with torch.no_grad():
        model.realloc_pool0.normal_()
        plain[0].weight += dense_of(model[0].realloc_site, model.realloc_pool0).to(dtype)
    return model, model[0].realloc_site, plain


@pytest.mark.parametrize("density", [0.03, 0.3, 0.9])  # one weight; few; so many that it is computed densely
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_the_sum(density, bias):
    model, site, plain = filled(density=density, bias=bias)
    assert site.compute == ("scatter" if density > 0.5 else "kernel")
    x = torch.randn(2, 3, 5, dtype=DOUBLE, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 3, 7, dtype=DOUBLE)
    (model(x) * weights).sum().backward()
    (plain(y) * weights).sum().backward()
    assert torch.allclose(model(x), plain(y), rtol=0, atol=1e-12)
    assert torch.allclose(x.grad, y.grad, rtol=0, atol=1e-12)
    mine = model.realloc_pool0.grad.flatten()
    assert torch.allclose(mine, plain[0].weight.grad.flatten()[site.places()], rtol=0, atol=1e-12)
    assert all(p.grad is None for n, p in model.named_parameters() if n != "realloc_pool0")


def test_gradcheck_also_of_a_weight_and_a_bias_that_train():
    model, _, _ = filled()
    layer = model[0]
    for parameter in layer.parameters():
        parameter.requires_grad_(True)
    x = torch.randn(4, 5, dtype=DOUBLE, requires_grad=True)
    parameters = [base_of(layer), layer.bias, model.realloc_pool0]

    def call(x, *_):
        return model(x)

    torch.autograd.gradcheck(call, (x, *parameters))


def test_it_is_differentiated_once():
    model, _, _ = filled()
    x = torch.randn(2, 5, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(StateError, match=r"second derivative|twice"):
        gradient.sum().backward()


def test_a_layer_without_a_weight_in_its_delta_is_the_layer():
    model = net()
    plain = net()
    realloc.prepare(model, methods.shira(budget=1))
    assert [m.realloc_site.held for m in (model[0], model[2])] in ([0, 1], [1, 0])
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    x, _ = batch(0)
    assert torch.equal(model(x), plain(x))
    step_on(model, optimizer, 0)
    assert model.realloc_pool0.grad.abs().item() > 0


@pytest.mark.parametrize("rows", [(0,), (3, 0), (1,)])
def test_batches_of_no_row_and_of_one(rows):
    model, _, plain = filled()
    x = torch.zeros(*rows, 5, dtype=DOUBLE, requires_grad=True)
    out = model(x)
    assert out.shape == (*rows, 7) and torch.allclose(out, plain(x))
    out.sum().backward()
    assert model.realloc_pool0.grad.shape == model.realloc_pool0.shape and not model.realloc_pool0.grad.any()


# precision --------------------------------------------------------------------------------------------------------


def test_a_small_delta_is_not_lost_beside_half_precision_weights():
    """Added to a weight of 1 in bfloat16 it would round to nothing."""
    model = nn.Sequential(nn.Linear(64, 1, bias=False)).to(torch.bfloat16)
    realloc.prepare(model, methods.shira(density=1.0).on("*"))
    assert model.realloc_pool0.dtype == torch.float32
    sign = torch.tensor([1.0, -1.0]).repeat(32)
    with torch.no_grad():
        base_of(model[0]).fill_(1.0)
        model.realloc_pool0.copy_(1e-3 * sign[:, None])
    x = sign.to(torch.bfloat16)[None].requires_grad_()
    out = model(x)  # of W comes nothing, of S 64 times 0.001
    assert out.dtype == torch.bfloat16 and float(out.detach()) == pytest.approx(0.064, rel=1e-2)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x)) and torch.equal(model.realloc_pool0.grad[:, 0], sign)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_its_dtype_and_trains_the_pool(dtype):
    model, site, plain = filled(torch.float32)
    x = torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = model(x)
        wanted = plain(x)
    assert out.dtype == wanted.dtype == dtype
    near = 1e-6 if dtype == torch.float32 else 0.1
    assert torch.allclose(out, wanted, rtol=0, atol=near)
    out.float().square().sum().backward()
    wanted.float().square().sum().backward()
    mine = model.realloc_pool0.grad
    assert mine.dtype == torch.float32
    assert torch.allclose(mine.flatten(), plain[0].weight.grad.flatten()[site.places()], rtol=0.1, atol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_models_move(dtype):
    model, optimizer, handle = made(methods.spiel(budget=60, drop=0.5, steps=2), model=net(dtype), gap=2)
    for number in range(8):
        step_on(model, optimizer, number)
    assert handle.moves == 4 and model.realloc_pool0.dtype == torch.float32
    out = model(batch(9, dtype)[0])
    plain = realloc.export.merged(model)
    assert plain[0].weight.dtype == dtype and torch.allclose(plain(batch(9, dtype)[0]), out, rtol=0.05, atol=0.05)


def test_another_dtype_of_the_input_is_named():
    model, _, _ = filled()
    with pytest.raises(RuntimeError, match=r"0\.weight: input is torch.float32, weight is torch.float64"):
        model(torch.randn(2, 5))


# other ways in ----------------------------------------------------------------------------------------------------


def test_a_weight_that_is_read_is_the_sum_and_its_gradient_counts():
    model, site, plain = filled()
    assert torch.allclose(model[0].weight, plain[0].weight)
    model[0].weight.square().sum().backward()
    wanted = 2 * plain[0].weight.detach().flatten()[site.places()]
    assert torch.allclose(model.realloc_pool0.grad.flatten(), wanted)


def test_an_encoder_layer_of_torch_reads_its_weights_in_evaluation():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).double()
    model = nn.Sequential(layer, nn.Linear(8, 2).double())
    realloc.prepare(model, methods.shira(density=0.3))
    with torch.no_grad():
        model.realloc_pool0.normal_()
    x = torch.randn(2, 5, 8, dtype=DOUBLE)
    slow = model.train()(x).detach()
    with torch.no_grad():
        fast = model.eval()(x)
    assert torch.allclose(slow, fast, rtol=0, atol=1e-10)
    assert torch.allclose(realloc.export.merged(model).train()(x), slow, rtol=0, atol=1e-10)


def test_checkpointed_layers_learn_as_others():
    class Saved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = net(sizes=(6, 10, 8)), nn.Linear(8, 4).double()

        def forward(self, x):
            return self.head(checkpoint(self.inner, x, use_reentrant=False))

    ends = []
    for saved in (True, False):
        torch.manual_seed(3)
        model = Saved()
        if not saved:
            model.forward = lambda x, m=model: m.head(m.inner(x))
        model, optimizer, handle = made(methods.spiel(budget=50, steps=2), model=model, gap=3)
        for number in range(9):
            step_on(model, optimizer, number)
        assert handle.moves == 3
        ends.append(model.realloc_pool0.detach().clone())
    assert torch.allclose(*ends, rtol=0, atol=1e-12)


def test_a_frozen_layer_keeps_its_delta():
    model, optimizer, handle = made(methods.spiel(budget=60, drop=0.5, steps=2), gap=2)
    step_on(model, optimizer, 0)
    model[2].requires_grad_(False)
    site = handle.sites["2.weight"]
    before, places = site.values().clone(), site.places()
    for number in range(1, 7):
        step_on(model, optimizer, number)
    assert torch.equal(site.values(), before) and torch.equal(site.places(), places)
    assert handle.moves and handle.held == 60
    model[2].requires_grad_(True)
    step_on(model, optimizer, 7)
    assert not torch.equal(site.values(), before)


@pytest.mark.filterwarnings("ignore")
def test_one_graph_over_many_moves():
    torch._dynamo.reset()
    method = methods.spiel(budget=60, drop=0.5, steps=2)
    model, optimizer, handle = made(method, gap=2)
    straight, other, second = made(method, gap=2)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for number in range(3):
        step_on(compiled, optimizer, number)
    with torch.compiler.set_stance("fail_on_recompile"):
        for number in range(3, 17):
            step_on(compiled, optimizer, number)
    for number in range(17):
        step_on(straight, other, number)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert handle.moves == second.moves == 8
    assert torch.allclose(model.realloc_pool0, straight.realloc_pool0, rtol=0, atol=1e-9)
    torch._dynamo.reset()


def test_copies_bring_their_own():
    model, optimizer, _ = made(methods.spiel(budget=60, steps=2), gap=2)
    step_on(model, optimizer, 0)
    copied = copy.deepcopy(model)
    x, _ = batch(5)
    before = copied(x).detach()
    for number in range(1, 5):
        step_on(model, optimizer, number)
    assert torch.equal(copied(x), before) and not torch.equal(model(x), before)


def test_a_strangers_rule_over_frozen_weights():
    model, optimizer, handle = made(DeltaMethod("rigl_delta", rule=methods.rigl, density=0.25), gap=2)
    held = [site.held for site in handle.sites.values()]
    for number in range(10):
        step_on(model, optimizer, number)
    assert handle.moves >= 3 and [site.held for site in handle.sites.values()] == held
