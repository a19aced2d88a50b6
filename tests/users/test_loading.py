from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from toy import attached, batch, intact, masks, net, same, train, weights

import realloc
from realloc import methods
from realloc.errors import ConfigError, RecordError, StateError


def saved(*things: Any) -> list[Any]:
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save([t.state_dict() for t in things], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_model_loaded_without_its_optimizer_is_refused_by_name() -> None:
    model, optimizer, handle = attached()
    train(model, optimizer, 0, 5)
    (state,) = saved(model)
    train(model, optimizer, 5, 9)
    model.load_state_dict(state)
    assert torch.isfinite(model(batch(0)[0])).all()
    before = weights(model)
    with pytest.raises(StateError, match=r"restart_moments\(\)"):
        train(model, optimizer, 9, 10)
    assert same(before, weights(model))
    handle.restart_moments()
    train(model, optimizer, 9, 14)
    intact(handle)


def test_an_optimizer_loaded_without_its_model_is_refused_by_name() -> None:
    model, optimizer, _ = attached()
    train(model, optimizer, 0, 5)
    (state,) = saved(optimizer)
    train(model, optimizer, 5, 9)
    optimizer.load_state_dict(state)
    with pytest.raises(StateError, match="one was loaded without the other"):
        train(model, optimizer, 9, 10)


STOPS = [1, 3, 4, 5, 7]  # moves after steps 4 and 8: stops before, at and after one


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("method", [methods.rigl, methods.snfs, methods.smet, methods.gse])
def test_a_resume_in_either_order_is_bit_equal(method: Any, stop: int, order: str) -> None:
    model, optimizer, handle = attached(method(density=0.2))
    train(model, optimizer, 0, stop)
    states = saved(model, optimizer)
    train(model, optimizer, stop, 13)
    again, other, second = attached(method(density=0.2), seed=0 if stop % 2 else 9)
    pairs = [(again, states[0]), (other, states[1])]
    for thing, state in pairs if order == "model first" else pairs[::-1]:
        thing.load_state_dict(state)
    train(again, other, stop, 13)
    assert same(masks(handle), masks(second)) and same(weights(model), weights(again))
    assert (handle.steps, handle.moves, handle.units_moved) == (second.steps, second.moves, second.units_moved)


@pytest.mark.parametrize("make", [methods.rigl, methods.snfs, methods.smet])
@pytest.mark.parametrize("load_before", ["nothing", "model", "optimizer", "both"])
def test_a_prepared_model_resumes_loaded_before_or_after_attach(load_before: str, make: Any) -> None:
    method = make(density=0.2)
    model, optimizer, _ = attached(method)
    train(model, optimizer, 0, 6)
    states = saved(model, optimizer)
    train(model, optimizer, 6, 13)
    again = net(seed=4)
    realloc.prepare(again, method)
    other = torch.optim.AdamW(again.parameters(), lr=1e-2)
    if load_before in ("model", "both"):
        again.load_state_dict(states[0])
    if load_before in ("optimizer", "both"):
        other.load_state_dict(states[1])
    realloc.attach(again, other, method, schedule=realloc.every(4, until=1.0, total=60))
    if load_before in ("optimizer", "nothing"):
        again.load_state_dict(states[0])
    if load_before in ("model", "nothing"):
        other.load_state_dict(states[1])
    train(again, other, 6, 13)
    assert same(weights(model), weights(again))


def test_an_optimizer_loaded_before_attach_without_its_model_is_refused() -> None:
    method = methods.rigl(density=0.2)
    model, optimizer, _ = attached(method)
    train(model, optimizer, 0, 6)
    (state,) = saved(optimizer)
    again = net()
    realloc.prepare(again, method)
    other = torch.optim.AdamW(again.parameters(), lr=1e-2)
    other.load_state_dict(state)
    realloc.attach(again, other, method, schedule=realloc.every(4, until=1.0, total=60))
    with pytest.raises(StateError, match="one was loaded without the other"):
        train(again, other, 6, 7)


@pytest.mark.parametrize("settings", [{}, {"fused": True}])
def test_optimizer_state_of_another_density_is_refused_before_anything_is_copied(settings: dict[str, bool]) -> None:
    model, optimizer, _ = attached(methods.rigl(density=0.2), **settings)
    other, second, _ = attached(methods.rigl(density=0.4), **settings)
    train(model, optimizer, 0, 2)
    train(other, second, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ConfigError, match=r"shape.*density"):
        optimizer.load_state_dict(saved(second)[0])
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for number, state in before["state"].items():
        assert all(torch.equal(v, after["state"][number][k]) for k, v in state.items())
    train(model, optimizer, 2, 6)


def _one_layer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 4))


@pytest.mark.parametrize("settings", [{}, {"fused": True}])
@pytest.mark.parametrize(("of", "into"), [("packed", "masked"), ("masked", "packed"), ("plain", "packed")])
def test_optimizer_state_of_another_storage_is_refused(of: str, into: str, settings: dict[str, bool]) -> None:
    """One layer: as many parameters either way, so only shapes tell."""
    made = {}
    for storage in (of, into):
        model = _one_layer()
        optimizer = torch.optim.AdamW(model.parameters(), **settings)
        if storage != "plain":
            method = methods.rigl(density=0.3).on("0", storage=storage)
            realloc.attach(model, optimizer, method, schedule=realloc.every(4, until=1.0, total=60))
        train(model, optimizer, 0, 2)
        made[storage] = optimizer
    with pytest.raises(ConfigError, match="shape"):
        made[into].load_state_dict(saved(made[of])[0])


Damage = Callable[[dict[str, torch.Tensor]], None]


def _set(key: str, index: int | tuple[int, ...], value: int) -> Damage:
    def damage(state: dict[str, torch.Tensor]) -> None:
        state[key][index] = value

    return damage


def _reversed_columns(state: dict[str, torch.Tensor]) -> None:
    state["realloc_columns0"][:12] = state["realloc_columns0"][:12].flip(0)


def _shorter(state: dict[str, torch.Tensor]) -> None:
    state["realloc_columns0"] = state["realloc_columns0"][:-1]


def _as_float(state: dict[str, torch.Tensor]) -> None:
    state["realloc_rows0"] = state["realloc_rows0"].float()


def _other_mask(state: dict[str, torch.Tensor]) -> None:
    state["realloc_mask0"] = ~state["realloc_mask0"]


def _outside(state: dict[str, torch.Tensor]) -> None:
    state["0.weight"][~state["realloc_mask0"].view_as(state["0.weight"])] = 1.0


def _without(*keys: str) -> Damage:
    def damage(state: dict[str, torch.Tensor]) -> None:
        for key in [k for k in state if any(k.startswith(start) for start in keys)]:
            del state[key]

    return damage


DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "a column too large": ("packed", _set("realloc_columns0", 0, 12), "outside"),
    "a column far too large": ("packed", _set("realloc_columns0", 3, 2**31 - 1), "outside"),
    "a negative column": ("packed", _set("realloc_columns0", 0, -1), "outside"),
    "rows that fall": ("packed", _set("realloc_rows0", 1, 30000), "row pointer"),
    "rows that start late": ("packed", _set("realloc_rows0", 0, 1), "row pointer"),
    "extents that fall": ("packed", _set("realloc_extents0", 1, -5), "extents"),
    "extents past the pool": ("packed", _set("realloc_extents0", -1, 10**6), "extents"),
    "extents that start late": ("packed", _set("realloc_extents0", 0, 1), "extents"),
    "an unknown compute": ("packed", _set("realloc_compute0", 0, 7), "compute"),
    "a column twice or out of order": ("packed", _reversed_columns, "not sorted|twice"),
    "another length": ("packed", _shorter, "density"),
    "another dtype": ("packed", _as_float, "float32"),
    "another stamp": ("packed", _set("realloc_book", -2, 5), "digest"),
    "another budget": ("packed", _set("realloc_book", -1, 5), "budget"),
    "other layers": ("packed", _set("realloc_book", -3, 5), "to the same layers, in the same order"),
    "another format": ("packed", _set("realloc_book", 0, 99), "format"),
    "no places": ("packed", _without("realloc_columns", "realloc_rows"), "missing"),
    "no book": ("packed", _without("realloc_book"), "missing"),
    "values alone": ("packed", _without("realloc_book", "realloc_columns", "realloc_rows", "realloc_e", "realloc_comp"),
                     "missing"),
    "masks too full": ("masked", _other_mask, "budget|outside"),
    "a weight outside its mask": ("masked", _outside, "outside its mask"),
    "no masks": ("masked", _without("realloc_mask"), "missing"),
    "a plain state": ("masked", _without("realloc_"), "plain model"),
}  # fmt: skip


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("case", DAMAGES)
def test_a_tampered_state_is_refused_before_anything_is_copied(case: str, strict: bool) -> None:
    storage, damage, word = DAMAGES[case]
    model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage))
    train(model, optimizer, 0, 6)
    (state,) = saved(model)
    damage(state)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RecordError, match=word):
        model.load_state_dict(state, strict=strict)
    assert same(before, dict(model.state_dict()))
    train(model, optimizer, 6, 9)
    intact(handle)


def test_a_plain_state_is_refused_with_the_remedy() -> None:
    model, _, _ = attached()
    with pytest.raises(RecordError, match=r"Load it before prepare\(\) or attach\(\)"):
        model.load_state_dict(net().state_dict())


def test_an_attached_state_into_a_plain_model_names_its_keys() -> None:
    model, _, _ = attached()
    with pytest.raises(RuntimeError, match="realloc_pool0"):
        net().load_state_dict(model.state_dict())


def test_a_dense_part_may_be_loaded_alone() -> None:
    model, optimizer, handle = attached()
    other = net(seed=8)
    model.load_state_dict({k: v for k, v in other.state_dict().items() if k.startswith("4.")}, strict=False)
    assert torch.equal(model[4].weight, other[4].weight)
    train(model, optimizer, 0, 5)
    intact(handle)


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_parameters_replaced_by_assign_are_noticed(storage: str) -> None:
    model, optimizer, _ = attached(methods.rigl(density=0.2).on("*", storage=storage))
    (state,) = saved(model)
    model.load_state_dict(state, assign=True)
    with pytest.raises(StateError, match="assign"):
        train(model, optimizer, 0, 1)


def test_a_state_inside_a_larger_module_keeps_its_prefix() -> None:
    class Outer(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

    model, optimizer, _ = attached()
    train(model, optimizer, 0, 6)
    (state,) = saved(Outer(model))
    again, _, _ = attached(seed=7)
    Outer(again).load_state_dict(state)
    x, _ = batch(0)
    assert torch.equal(model(x), again(x))
    state["inside.realloc_columns0"][0] = 99
    with pytest.raises(RecordError, match="outside"):
        Outer(again).load_state_dict(state)
