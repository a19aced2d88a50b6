"""The budget after every step, in parameters and in FLOPs, beside what the layers really have."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from wide_nets import DOUBLE, IMAGE, attached, cnn, data, mlp, shape_of, step_on, widths

import realloc
from kinds import WIDTHS
from realloc import methods
from realloc.allocate.room_of_widths import in_proportion
from realloc.errors import ConfigError, ReallocWarning, RecordError
from realloc.grow.split import split
from realloc.handle import Handle
from realloc.methods.width_method import WidthMethod
from realloc.schedule import linear
from realloc.scores.neuron_mean import neuron_mean

MADE: dict[str, Any] = {
    "width": lambda drop, cost: methods.width(drop=drop, mature=0, window=2, currency=cost),
    "width by copies": lambda drop, cost: methods.width(drop=drop, mature=3, window=9, grow=split, currency=cost),
    "morphnet": lambda drop, cost: methods.morphnet(drop=drop, mature=0, window=1, currency=cost),
    "gradmax": lambda drop, cost: methods.gradmax(drop=drop, mature=0, currency=cost),
    "random_widths": lambda drop, cost: methods.random_widths(drop=drop, mature=0, currency=cost),
    "narrow": lambda drop, cost: methods.narrow(1.0 - drop, currency=cost),
    "redo": lambda drop, cost: methods.redo(drop),
    "continual_backprop": lambda drop, cost: methods.continual_backprop(drop, mature=0),
    "uniform_widths": lambda drop, cost: methods.uniform_widths(),
    "down and up": lambda drop, cost: WidthMethod(
        "down and up", want=neuron_mean, share=in_proportion, held=linear(1.0 - drop, 1.0), mature=2, currency=cost
    ),
}  # fmt: skip


def test_every_method_of_the_package_is_here() -> None:
    assert set(WIDTHS) <= set(MADE)


def real_cost(model: nn.Module, handle: Handle, currency: str) -> int:
    """Counted on plain layers, by their own shapes."""
    plain = realloc.export.dense(model)
    if currency == "parameters":
        return sum(plain.get_parameter(name).numel() for name in handle.sites)
    total, image = 0, IMAGE[1]
    for name, layer in plain.named_children():
        if isinstance(layer, nn.Conv2d):
            image = (image + 2 * layer.padding[0] - layer.kernel_size[0]) // layer.stride[0] + 1
            places = image**2
        else:
            places = 1
        if f"{name}.weight" in handle.sites and not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            total += 2 * places * layer.weight.numel()
    return total


def check(model: nn.Module, optimizer: torch.optim.Optimizer, handle: Handle, bounds: dict[str, Any]) -> None:
    pools = handle._holdings.wide
    assert handle.held + handle.parked == handle.budget == bounds["budget"] and handle.held <= handle.budget
    assert handle.held == real_cost(model, handle, bounds["currency"])
    for name, width in widths(handle).items():
        least, most = bounds[name]
        assert least <= width <= most, name
    for pool in pools:
        ends = pool.extents.tolist()
        assert ends[0] == 0 and ends == sorted(ends) and ends[-1] <= len(pool.parameter)
        assert [b - a for a, b in pairwise(ends)] == [site.mask().numel() for site in pool.sites]
        parked = pool.parameter.detach()[ends[-1] :]
        assert not parked.any(), "a parked slot is not zero"
        for key, value in optimizer.state[pool.parameter].items():
            if value.shape == pool.parameter.shape:
                assert not value[ends[-1] :].any(), f"{key} of a parked slot is not zero"


@st.composite
def nets(draw: st.DrawFn) -> nn.Module:
    width = st.integers(1, 8)
    if draw(st.booleans()):
        sizes = draw(st.lists(width, min_size=1, max_size=3))
        return mlp(5, *sizes, 3, norm=draw(st.booleans()), bias=draw(st.booleans()))
    return cnn(draw(width), draw(width), draw(width), bias=draw(st.booleans()))


@settings(deadline=None, max_examples=35)
@given(
    name=st.sampled_from(sorted(MADE)), model=nets(), currency=st.sampled_from(["parameters", "FLOPs"]),
    drop=st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.95]), gap=st.integers(1, 3), least=st.integers(1, 3),
    most=st.sampled_from([1.0, 1.5, 4.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_budget_is_exact_after_every_step(
    name: str, model: nn.Module, currency: str, drop: float, gap: int, least: int, most: float, seed: int
) -> None:
    shape = shape_of(model)
    if name in ("redo", "continual_backprop", "uniform_widths"):
        currency = "parameters"
    example = data(0, *shape, rows=1) if currency == "FLOPs" else None
    method = MADE[name](drop, currency).on(least=least, most=most, example=example)
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        optimizer, handle = attached(method, model, gap=gap, total=9, seed=seed)
    except ConfigError as error:
        words = ("above the", "may spend", "between one plain nn.Linear", "one or more of")
        assert any(word in str(error) for word in words), error
        now = model.state_dict()
        assert plain.keys() == now.keys() and all(torch.equal(plain[key], now[key]) for key in plain)
        return
    bounds: dict[str, Any] = {"budget": handle.budget, "currency": currency}
    for group, width in widths(handle).items():
        bounds[group] = least, max(1, int(most * width))
    assert handle.held == handle.budget
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReallocWarning)
        for number in range(9):
            step_on(model, optimizer, number)
            check(model, optimizer, handle, bounds)
    if name == "narrow":
        assert handle.held <= round(handle.budget * (1.0 - drop))


@pytest.mark.parametrize("currency", ["parameters", "FLOPs"])
def test_a_model_of_one_unit_a_layer_trains_and_says_that_nothing_moves(currency: Any) -> None:
    model = mlp(5, 1, 1, 3)
    optimizer, handle = attached(methods.width(drop=0.5, mature=0, currency=currency), model, gap=1, total=3)
    for number in range(2):
        step_on(model, optimizer, number)
    with pytest.warns(ReallocWarning, match="RA003"):
        step_on(model, optimizer, 2)
    assert widths(handle) == {"0": 1, "2": 1} and handle.parked == 0


def test_what_is_left_pays_for_no_further_unit() -> None:
    model = mlp(6, 14, 9, 11, 3)
    optimizer, handle = attached(methods.random_widths(drop=0.4, mature=0), model, gap=1, total=20)
    space = handle._holdings.wide[0].space
    for number in range(20):
        step_on(model, optimizer, number)
        now = [*widths(handle).values()]
        cheapest = min(space.marginal(now, g) for g in range(3) if now[g] < space.most[g])
        room = [pool.capacity - pool.held for pool in handle._holdings.wide]
        assert handle.parked < cheapest or room[0] < cheapest, "a unit was to be had"
    assert handle.moves >= 10


def test_pools_of_different_rates_cannot_pay_for_each_other() -> None:
    """One optimizer group for each layer: each has its own slots, and no move takes another's."""
    model = mlp(6, 12, 10, 3)
    groups = [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[2].parameters()},
              {"params": model[4].parameters(), "weight_decay": 0.1}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    del groups
    method = methods.random_widths(drop=0.4, mature=0)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(1, total=20))
    lengths = [len(pool.parameter) for pool in handle._holdings.wide]
    assert len(lengths) == 5 and len(optimizer.param_groups) == 3  # weights and vectors apart
    for number in range(20):
        step_on(model, optimizer, number)
        for pool in handle._holdings.wide:
            assert int(pool.extents[-1]) <= len(pool.parameter)
        assert handle.held + handle.parked == handle.budget
    assert handle.units_moved and [len(pool.parameter) for pool in handle._holdings.wide] == lengths
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 2]


# narrow and compact -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("currency", ["parameters", "FLOPs"])
def test_compact_gives_back_what_narrow_released_and_the_run_goes_on(currency: Any) -> None:
    model = cnn(6, 5, 8)
    method = methods.narrow(0.4, currency=currency).on(example=data(0, *IMAGE, rows=1))
    optimizer, handle = attached(method, model, gap=2, total=8)
    for number in range(8):
        step_on(model, optimizer, number)
    x, held, budget = data(50, *IMAGE), handle.held, handle.budget
    assert held <= round(0.4 * budget) and held == real_cost(model, handle, currency)
    before, slots = model.eval()(x), sum(len(pool.parameter) for pool in handle._holdings.wide)
    moments = {key: value.clone() for key, value in optimizer.state[model.realloc_pool0].items()}
    freed = handle.compact()
    assert handle.budget == handle.held == held < budget and handle.parked == 0
    assert torch.equal(model(x), before)
    weights, vectors = handle._holdings.wide
    assert len(weights.parameter) == weights.held and len(vectors.parameter) == 4 * (2 * (6 + 5) + 8)
    assert freed == slots - len(weights.parameter) - len(vectors.parameter) > 0
    size = len(model.realloc_pool0)
    assert all(
        torch.equal(value, moments[key][:size] if value.ndim else moments[key])
        for key, value in optimizer.state[model.realloc_pool0].items()
    )
    # a straight run, never compacted, goes on alike
    straight = cnn(6, 5, 8)
    other, second = attached(method, straight, gap=2, total=8)
    for number in range(8):
        step_on(straight, other, number)
    for number in range(8, 12):
        assert step_on(model.train(), optimizer, number) == step_on(straight, other, number)
    assert second.parked > 0
    # and what it saved loads into a new model
    again = cnn(6, 5, 8)
    third, mine = attached(method, again, gap=2, total=8)
    again.load_state_dict(model.state_dict())
    third.load_state_dict(optimizer.state_dict())
    assert mine.budget == handle.budget and mine.held == handle.held
    assert step_on(again, third, 12) == step_on(model, optimizer, 12)


HOLDING: dict[str, Any] = {
    "redo": lambda: methods.redo(0.8), "continual_backprop": lambda: methods.continual_backprop(0.2, mature=0),
    "uniform_widths": methods.uniform_widths, "width": lambda: methods.random_widths(drop=0.4, mature=0),
    "FLOPs": lambda: methods.random_widths(drop=0.4, mature=0, currency="FLOPs"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLDING)
@pytest.mark.parametrize("steps", [0, 6])
def test_compact_where_the_budget_stays_gives_slots_back_and_loads(name: str, steps: int) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer, Handle]:
        model = mlp(6, 12, 10, 3)
        return (model, *attached(HOLDING[name](), model, gap=2, total=40))

    model, optimizer, handle = made()
    for number in range(steps):
        step_on(model, optimizer, number)
    before, held = sum(p.numel() for p in model.parameters()), handle.held
    freed = handle.compact()
    assert freed == before - sum(p.numel() for p in model.parameters())
    assert (freed > 0) == (name == "FLOPs" or handle._holdings.wide[0].capacity < 12 * 6 + 12 * 10 + 10 * 3)
    assert handle.budget == handle.held == held
    again, other, second = made()
    again.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert second.budget == held and widths(second) == widths(handle)
    moves, seen = handle.moves, set()
    for number in range(steps, 20):
        assert step_on(model, optimizer, number) == step_on(again, other, number)
        seen.add(tuple(widths(handle).values()))
    assert widths(second) == widths(handle)
    if name in ("width", "FLOPs"):
        assert len(seen) > 2, "what was given back must not keep units from moving"
    assert name == "uniform_widths" or handle.moves > moves


def test_a_state_that_was_not_shortened_is_refused_by_a_model_that_was() -> None:
    model = mlp(6, 12, 10, 3)
    _, handle = attached(HOLDING["FLOPs"](), model)
    whole = copy.deepcopy(model.state_dict())
    assert handle.compact() > 0
    with pytest.raises(RecordError, match=r"in the state, .* here; make the model with the same"):
        model.load_state_dict(whole)


def test_narrow_to_the_end_of_its_budget_keeps_a_unit_everywhere() -> None:
    model = mlp(6, 12, 10, 3)
    floor = 6 + 1 + 1 + 1 + 3
    share = floor / (6 * 12 + 12 + 12 * 10 + 10 + 10 * 3)
    optimizer, handle = attached(methods.narrow(share), model, gap=1, total=6)
    for number in range(6):
        step_on(model, optimizer, number)
    assert widths(handle) == {"0": 1, "2": 1} and handle.held == floor
    loss = step_on(model, optimizer, 7)
    assert loss == loss and copy.deepcopy(model)(data(0, 6)).dtype == DOUBLE
