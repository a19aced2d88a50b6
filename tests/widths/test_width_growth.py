"""What a move of widths does to the function: growth keeps it; a cut is compensated in the mean, and tells its jump."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wide_nets import (
    DOUBLE,
    IMAGE,
    Events,
    attached,
    cnn,
    data,
    loss_of,
    mlp,
    noted_moves,
    output,
    shape_of,
    step_on,
    widths,
)

import realloc
from realloc.allocate.room_of_widths import in_proportion
from realloc.grow.gradmax import gradmax
from realloc.grow.grown import Growth
from realloc.grow.split import split
from realloc.grow.zero_output import zero_output
from realloc.methods.width_method import WidthMethod
from realloc.schedule import constant, linear, until_end
from realloc.scores.neuron_gain import neuron_gain
from realloc.scores.neuron_magnitude import neuron_magnitude
from realloc.scores.neuron_mean import neuron_mean
from realloc.scores.neuron_random import neuron_random

RULES = {"zero_output": zero_output, "gradmax": gradmax, "split": split}


def growing(rule: Growth) -> WidthMethod:
    """Most of the cost goes at the first move, of all groups alike; then only growth, in proportion."""
    return WidthMethod(
        "growing", keep=neuron_random, want=neuron_mean, grow=rule, held=linear(0.1, 1.0), share=in_proportion
    )


def sum_of(activation: str) -> Any:
    return {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus}[
        activation
    ]


MODELS: dict[str, Any] = {
    "relu": lambda: mlp(5, 9, 8, 7, 3), "tanh": lambda: mlp(5, 9, 8, 7, 3, act=nn.Tanh),
    "gelu": lambda: mlp(5, 9, 8, 7, 3, act=nn.GELU), "softplus": lambda: mlp(5, 9, 8, 7, 3, act=nn.Softplus),
    "norm": lambda: mlp(5, 9, 8, 7, 3, norm=True), "flattened": lambda: cnn(9, 9, 12),
    "flattened with biases": lambda: cnn(9, 9, 12, bias=True), "one input": lambda: mlp(1, 9, 8, 2),
}  # fmt: skip
CASES = [(rule, model) for rule in RULES for model in MODELS]
CASES = [(r, m) for r, m in CASES if r != "gradmax" or not m.startswith(("norm", "flattened"))]


@pytest.mark.filterwarnings("ignore:.*RA00")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("rule", "name"), CASES)
def test_growth_keeps_the_function(rule: str, name: str, training: bool) -> None:
    model, both_sides, grown = MODELS[name](), 0, 0
    shape, seen = shape_of(model), list[Tensor]()
    x = data(99, *shape)

    def look() -> Tensor:
        return output(model, x, training)

    optimizer, handle = attached(
        growing(RULES[rule]), model, gap=1, total=4, lr=0.0, optimizer=torch.optim.SGD,
        before_move=lambda: seen.append(look()),
    )  # fmt: skip
    for number in range(4):
        before = widths(handle)
        step_on(model, optimizer, number)
        after = widths(handle)
        if number:  # the first move is the cut
            assert torch.allclose(look(), seen[-1], rtol=0, atol=1e-10), f"step {number + 1}: the function jumped"
            rise = [after[group] - before[group] for group in before]
            assert min(rise) >= 0
            grown += sum(rise)
            both_sides += any(a and b for a, b in pairwise(rise))
    assert grown >= 6 and both_sides >= 1 and len(seen) == 4


@pytest.mark.parametrize("rule", RULES)
def test_in_float32_to_rounding_and_with_dropout_in_eval(rule: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 24), nn.GELU(), nn.Dropout(0.3), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3)]
    model, seen = nn.Sequential(*layers), list[Tensor]()
    x = data(1, 5, dtype=torch.float32)

    def look() -> Tensor:
        with torch.no_grad():
            found = model.eval()(x)
        model.train()
        return found

    optimizer, _ = attached(
        growing(RULES[rule]), model, gap=1, total=4, optimizer=torch.optim.SGD, lr=0.0,
        before_move=lambda: seen.append(look()),
    )  # fmt: skip
    for number in range(4):
        step_on(model, optimizer, number)
        assert number < 1 or torch.allclose(look(), seen[-1], rtol=0, atol=1e-6)


def test_growing_more_than_double_shares_a_unit_among_all_its_copies() -> None:
    model = mlp(4, 8, 3)
    method = WidthMethod("more", keep=neuron_magnitude, want=neuron_mean, grow=split, held=until_end(0.2, 1.0))
    optimizer, handle = attached(method, model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    step_on(model, optimizer, 0)
    assert widths(handle) == {"0": 1}
    x, small = data(5, 4), realloc.export.dense(model)
    step_on(model, optimizer, 1)
    assert widths(handle) == {"0": 8}
    assert torch.allclose(model(x), small(x), rtol=0, atol=1e-12)
    wide = realloc.export.dense(model)
    assert torch.equal(wide[0].weight, small[0].weight.expand(8, -1))  # every one a copy
    assert torch.allclose(wide[2].weight.sum(1), small[2].weight[:, 0], rtol=0, atol=1e-14)
    assert len(wide[2].weight.unique()) == 24, "two copies read alike would stay alike"


def test_a_copy_is_of_a_unit_that_stays() -> None:
    """As many units go as come: the copies must be of the best that stay, never of one that goes."""
    model = mlp(4, 6, 3)
    with torch.no_grad():
        model[0].weight[1:] *= 1e-3  # one unit is worth more than all others
        model[0].bias[1:] *= 1e-3
    method = WidthMethod("swap", keep=neuron_magnitude, want=neuron_mean, grow=split, drop=constant(0.99), within=True)
    optimizer, handle = attached(method, model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    plain = realloc.export.dense(model)
    step_on(model, optimizer, 0)
    assert handle.units_moved == 5
    found = realloc.export.dense(model)
    assert torch.equal(found[0].weight, plain[0].weight[:1].expand(6, -1))
    assert torch.allclose(found[2].weight.sum(1), plain[2].weight[:, 0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
def test_a_copy_gets_what_its_original_gets_for_units_that_went_before(bias: bool, monkeypatch: Any) -> None:
    """A copy reads the units that went too; with a norm behind and no bias, its running mean takes that over."""
    model = mlp(5, 8, 8, 3) if bias else mlp(5, 8, 8, 3, bias=False, norm=True)
    moves, reader = noted_moves(monkeypatch), 2 if bias else 3
    method = WidthMethod(
        "halves", keep=neuron_magnitude, want=neuron_mean, grow=split, drop=constant(0.5), within=True
    )  # fmt: skip
    optimizer, handle = attached(method, model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    plain, x = realloc.export.dense(model), data(0, 5)
    step_on(model, optimizer, 0)
    assert handle.units_moved == 8
    after = realloc.export.dense(model)
    sums = after[: reader + 1](x).detach()
    if bias:
        stay = moves[-1][1]["2"][:4]
        wanted = plain[:3](x)[:, stay].mean(0)
    else:
        sums = sums - after[reader + 1].running_mean
        wanted = sums[:, :4].mean(0)
    gap = (sums[:, 4:, None] - sums[:, None, :4]).abs().amax(0).amin(1)
    assert float(gap.max()) < 1e-10, "a copy computes what its original does"
    assert torch.allclose(sums[:, :4].mean(0), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("rule", "name"), [case for case in CASES if case[1] in ("relu", "norm", "flattened")])
def test_a_move_that_cuts_and_grows_gives_what_the_cut_alone_gives(rule: str, name: str, monkeypatch: Any) -> None:
    """Not compensated, a released unit is one whose output is zero; what came beside changes nothing."""
    model, moves, cut = MODELS[name](), noted_moves(monkeypatch), 0
    method = WidthMethod(
        "both", keep=neuron_random, want=neuron_mean, grow=RULES[rule], drop=constant(0.4), share=in_proportion,
        compensate=False,
    )  # fmt: skip
    before: list[nn.Module] = []
    optimizer, handle = attached(
        method, model, gap=1, total=4, lr=0.0, optimizer=torch.optim.SGD,
        before_move=lambda: before.append(realloc.export.dense(model)),
    )  # fmt: skip
    space, x = handle._holdings.wide[0].space, data(7, *shape_of(model))
    for number in range(4):
        step_on(model, optimizer, number)
        plain, (plan, _) = before[-1].eval(), moves[-1]
        for group, change in enumerate(plan.changes):
            for member in space.members:
                if member.columns is not None and member.columns.group == group:
                    block = member.columns.block
                    gone = (change.released[:, None] * block + torch.arange(block)).flatten()
                    plain.get_parameter(member.name).data[:, gone] = 0
                    cut += len(gone)
        assert torch.allclose(model.eval()(x), plain(x), rtol=0, atol=1e-10), f"step {number + 1}"
        model.train()
    assert cut >= 10 and handle.units_moved >= 10


# how new units start ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*RA00")
def test_random_units_start_as_torch_starts_a_layer() -> None:
    model = mlp(400, 30, 20, 3)
    optimizer, handle = attached(growing(zero_output), model, gap=1, total=4, lr=0.0, optimizer=torch.optim.SGD)
    step_on(model, optimizer, 0)
    before = widths(handle)
    step_on(model, optimizer, 1)
    first = before["0"]
    new = realloc.export.dense(model)[0].weight[first:].detach()
    assert len(new) >= 3 and float(new.abs().max()) <= 400**-0.5
    assert float(new.std()) == pytest.approx((400 * 3) ** -0.5, rel=0.05)
    dense = realloc.export.dense(model)
    assert not dense[0].bias[first:].any() and not dense[2].weight[:, first:].any()


def test_gradmax_is_the_largest_gradient_that_outgoing_weights_of_that_size_can_give() -> None:
    """On the batch of the move, by autograd of a plain model that has the new units."""
    model = mlp(6, 8, 4)
    method = dataclasses.replace(growing(gradmax), keep=neuron_magnitude, want=neuron_gain)
    optimizer, handle = attached(method, model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    step_on(model, optimizer, 0)
    small, kept = realloc.export.dense(model), widths(handle)["0"]
    x = data(1, 6)
    step_on(model, optimizer, 1)
    wide = realloc.export.dense(model)
    loss_of(wide, x).backward()
    got = wide[0].weight.grad[kept:].norm(dim=1)
    # by hand: the gradient of a new unit's incoming weights is sum_b (dL/dy_b . w_out) x_b where the unit is open
    y = small(x)
    gy = torch.autograd.grad((y - x[:, :4] * x[:, -4:]).square().mean(), y)[0]
    products = gy.t() @ x
    size = small[2].weight.norm(dim=0).mean()
    sigma = torch.linalg.svdvals(products)
    assert len(got) == 8 - kept >= 4
    assert torch.allclose(got[: len(sigma)], size * sigma[: len(got)], rtol=1e-9)
    draws = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    others = size.detach() * (nn.functional.normalize(draws, dim=1) @ products).norm(dim=1)
    assert others.max() <= got[0] * (1 + 1e-9)


# cuts -------------------------------------------------------------------------------------------------------------


def cutting(compensate: bool = True) -> WidthMethod:
    return WidthMethod("cutting", keep=neuron_magnitude, held=linear(1.0, 0.5), compensate=compensate)


def test_the_jump_of_a_cut_is_told_and_is_the_norm_of_what_was_read() -> None:
    model, events = mlp(5, 8, 3), Events()
    before = realloc.export.dense(model)
    optimizer, handle = attached(cutting(), model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD, record=events)
    step_on(model, optimizer, 0)
    maker, reader = torch.cat([before[0].weight, before[0].bias[:, None]], 1).detach(), before[2].weight.detach()
    size = maker.square().sum(1) * reader.square().sum(0)
    gone = size.argsort()[: 8 - widths(handle)["0"]]
    assert len(gone) >= 2
    jump = float(reader[:, gone].norm())
    assert events[0]["sites"]["0"]["jump"] == pytest.approx(jump, rel=1e-12)
    assert events[0]["sites"]["0"]["keep_threshold"] == pytest.approx(float(size[gone].max().sqrt()), rel=1e-12)
    assert f"jumped by {jump:.3g}" in handle.explain("0")


@pytest.mark.parametrize("compensate", [True, False])
@pytest.mark.parametrize("name", ["relu", "tanh", "flattened", "flattened with biases"])
def test_compensation_keeps_the_mean_of_a_linear_reader(name: str, compensate: bool) -> None:
    model = cnn(4, 8, 9, bias="biases" in name) if "flattened" in name else mlp(5, 9, 3, act=sum_of(name))
    method = cutting(compensate).on("3" if "flattened" in name else "0")  # the reader is a linear layer
    reader = 7 if "flattened" in name else 2
    optimizer, handle = attached(method, model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    x = data(0, *shape_of(model))
    plain = realloc.export.dense(model)
    before = plain[: reader + 1](x).mean(0)
    step_on(model, optimizer, 0)
    assert handle.moves == 1 and handle.parked
    after = realloc.export.dense(model).train()[: reader + 1](x).mean(0)
    assert torch.allclose(after, before, rtol=0, atol=1e-12) == compensate


def test_compensation_by_hand_over_micro_batches() -> None:
    """What a unit gave on average over all rows of the step goes into the bias behind, and nothing else changes."""
    model = mlp(5, 7, 3)
    optimizer, handle = attached(cutting(), model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    plain = realloc.export.dense(model)
    x = data(0, 5)
    for part in (x[:3], x[3:]):
        loss_of(model, part).backward()
    optimizer.step()
    dense = realloc.export.dense(model)
    rows = {tuple(row) for row in dense[0].weight.tolist()}
    gone = torch.tensor([tuple(row) not in rows for row in plain[0].weight.tolist()])
    assert int(gone.sum()) == 7 - widths(handle)["0"] >= 1
    mean = plain[:2](x).mean(0)
    assert torch.allclose(dense[2].bias, plain[2].bias + plain[2].weight[:, gone] @ mean[gone], rtol=0, atol=1e-14)
    assert torch.equal(dense[2].weight, plain[2].weight[:, ~gone]) and torch.equal(dense[0].bias, plain[0].bias[~gone])


def test_without_a_bias_the_running_mean_right_behind_is_shifted() -> None:
    """A 1 x 1 convolution reads a unit that goes; its norm sees the shift in eval mode only."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 36, 3),
    ).to(DOUBLE)  # fmt: skip
    optimizer, handle = attached(cutting().on("0"), model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    plain, x = realloc.export.dense(model), data(0, *IMAGE)
    step_on(model, optimizer, 0)
    assert 1 <= widths(handle)["0"] < 6
    dense = realloc.export.dense(model)
    rows = {tuple(row) for row in dense[0].weight.flatten(1).tolist()}
    gone = torch.tensor([tuple(row) not in rows for row in plain[0].weight.flatten(1).tolist()])
    lost = plain[2].weight[:, gone, 0, 0] @ plain[:2](x).mean((0, 2, 3))[gone]
    batch = plain[:3](x).mean((0, 2, 3))  # what the step's own forward left in the running mean
    assert torch.allclose(dense[3].running_mean, 0.1 * batch - lost, rtol=0, atol=1e-12)
    old, new = plain[:3](x).mean((0, 2, 3)), dense[:3](x).mean((0, 2, 3)) - dense[3].running_mean
    assert torch.allclose(new, old - 0.1 * batch, rtol=0, atol=1e-12)


def test_a_recycled_unit_leaves_its_mean_behind_too() -> None:
    method = WidthMethod("recycling", keep=neuron_magnitude, want=neuron_mean, drop=constant(0.4), within=True)
    model = mlp(5, 10, 3)
    optimizer, handle = attached(method, model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    x = data(0, 5)
    before = model(x).mean(0).detach()
    step_on(model, optimizer, 0)
    assert handle.units_moved == 4 and widths(handle) == {"0": 10}
    assert torch.allclose(model(x).mean(0), before, rtol=0, atol=1e-12)


def test_a_frozen_bias_behind_stays_as_it_is() -> None:
    model = mlp(5, 8, 3)
    model[2].bias.requires_grad_(False)
    kept = model[2].bias.clone()
    optimizer, handle = attached(cutting(), model, gap=1, total=2)
    step_on(model, optimizer, 0)
    assert handle.parked and torch.equal(model[2].bias, kept)
