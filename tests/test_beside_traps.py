"""Several methods on one model, where their ways cross: which was prepared for which, orders, loads, names, records."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError, RecordError
from realloc.record.events import read

SCHEDULE = realloc.every(4, total=40)


def net(seed: int = 0, width: int = 16) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes, layers = (8, width, width, width, 12, 3), list[nn.Module]()
    for inward, out in pairwise(sizes):
        layers += [nn.Linear(inward, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def step(model: nn.Module, *optimizers: torch.optim.Optimizer, number: int = 0) -> float:
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(32, 8, generator=draw, dtype=torch.float64)
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long() + (x[:, 1] > 0.5))
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def names_in(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, method: Any, **more: Any) -> Any:
    return realloc.attach(model, optimizer, method, **({"schedule": SCHEDULE} | more))


# prepared for whom -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weights", "columns"])
def test_prepared_twice_each_handle_has_its_own_layers_in_any_order(kind: str) -> None:
    make = {"weights": lambda n: methods.rigl(0.3).on(n), "columns": lambda n: methods.columns("50%").on(n)}[kind]
    model = net()
    for name in ("2", "4"):
        realloc.prepare(model, make(name))
    optimizer = torch.optim.AdamW(model.parameters())
    handles = {name: attach(model, optimizer, make(name)) for name in ("4", "2")}
    assert all([*handle.units] == [f"{name}.weight"] for name, handle in handles.items())


def test_prepared_for_other_layers_is_refused() -> None:
    model = net()
    realloc.prepare(model, methods.rigl(0.3).on("2"))
    optimizer = torch.optim.AdamW(model.parameters())
    for other in (methods.rigl(0.3).on("4"), methods.rigl(0.3)):
        with pytest.raises(ConfigError, match=r"over 2\.weight, attach got it for other layers"):
            attach(model, optimizer, other)
    assert [*attach(model, optimizer, methods.rigl(0.3).on("2")).units] == ["2.weight"]


# the optimizer's order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_one_prepared_and_one_not_leave_the_order_of_the_model(first: int) -> None:
    model = net()
    begun = methods.rigl(0.3).on("2", "4")
    realloc.prepare(model, begun)
    optimizer = torch.optim.AdamW(model.parameters())
    handles = [attach(model, optimizer, one) for one in (begun, methods.snfs(0.3).on("0", "6"))]
    step(model, optimizer)
    for place in (first, 1 - first):
        handles[place].detach()
    assert names_in(model, optimizer) == [[name for name, _ in model.named_parameters()]]
    step(model, optimizer)


@pytest.mark.filterwarnings(r"ignore:\[RA002\]")
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_a_group_that_came_later_and_another_optimizer_keep_their_orders(apart: bool, first: int) -> None:
    model = net()
    low, high = model[:4], model[4:]
    optimizer = torch.optim.AdamW(low.parameters())
    handles = [attach(model, optimizer, methods.rigl(0.3).on("2"))]
    other = torch.optim.SGD(high.parameters(), lr=0.1) if apart else optimizer
    if not apart:
        optimizer.add_param_group({"params": [*high.parameters()], "lr": 1e-4})
    handles.append(attach(model, other, methods.snfs(0.3).on("4", "6")))
    step(model, *{optimizer, other})
    for place in (first, 1 - first):
        handles[place].detach()
    assert names_in(model, other)[-1] == [name for name, _ in net()[4:].named_parameters()]
    step(model, *{optimizer, other})


# states ----------------------------------------------------------------------------------------------------------


def test_a_state_of_methods_in_another_order_is_refused_though_its_shapes_fit() -> None:
    model, other = net(), net(1)
    pairs = []
    for one, order in ((model, "24"), (other, "42")):
        optimizer = torch.optim.AdamW(one.parameters())
        pairs.append([attach(one, optimizer, methods.rigl(0.3).on(name)) for name in order])
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(RecordError, match=r"realloc_book is not that of 4\.weight: attach .* in the same order"):
        other.load_state_dict(model.state_dict())
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_more_or_fewer_methods_is_refused_before_anything_is_copied(strict: bool) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(model, optimizer, methods.rigl(0.3).on("2"))
    one = copy.deepcopy(model.state_dict())
    second = attach(model, optimizer, methods.snfs(0.4).on("4"))
    two = copy.deepcopy(model.state_dict())
    step(model, optimizer)
    now = copy.deepcopy(model.state_dict())
    with pytest.raises(RecordError, match=r"4\.weight is a dense weight in this state, and others move: attach the"):
        model.load_state_dict(one, strict=strict)
    assert all(torch.equal(now[key], value) for key, value in model.state_dict().items())
    second.detach()
    now = copy.deepcopy(model.state_dict())
    with pytest.raises(RecordError, match="realloc_2_book is of a method that this model has not: attach the methods"):
        model.load_state_dict(two, strict=strict)
    assert all(torch.equal(now[key], value) for key, value in model.state_dict().items())


# who has what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["realloc_pool0", "realloc_rows0", "realloc_mine"])
@pytest.mark.parametrize("buffer", [False, True])
def test_a_name_of_ours_on_a_users_model_is_refused_and_stays(name: str, buffer: bool) -> None:
    model = net()
    if buffer:
        model.register_buffer(name, torch.ones(3))
    else:
        model.register_parameter(name, nn.Parameter(torch.ones(3)))
    optimizer = torch.optim.AdamW(model.parameters())
    for method in (methods.rigl(0.3), methods.width(), methods.lora(rank=2)):
        with pytest.raises(ConfigError, match=f"has '{name}' of its own, .* rename it"):
            attach(model, optimizer, method)
        with pytest.raises(ConfigError, match="rename it"):
            realloc.prepare(model, method)
    assert name in model.state_dict() and not hasattr(model, "realloc_holdings")


def test_a_width_does_not_move_beside_masks_of_a_bias() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(model, optimizer, methods.rigl(0.3).on("2.bias", storage="masked"))
    with pytest.raises(ConfigError, match=r"the width of '2' cannot move: rigl moves 2\.bias"):
        attach(model, optimizer, methods.width(mature=0).on("2"))
    assert "2" not in attach(model, optimizer, methods.width(mature=0)).units


def test_no_layer_becomes_the_classifier_because_another_method_has_that() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(model, optimizer, methods.rigl(0.5).on("8"))
    assert [*attach(model, optimizer, methods.snfs(0.3)).units] == ["0.weight", "2.weight", "4.weight", "6.weight"]


def test_a_pattern_for_what_moves_already_is_refused_by_name() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(model, optimizer, methods.rigl(0.5).on("2"))
    for method in (methods.snfs(0.3).on("[2]"), methods.snfs(0.3).on("2.*"), methods.width().on("2")):
        with pytest.raises(ConfigError, match=r"2\.weight is moved by rigl already; name other layers"):
            attach(model, optimizer, method)


def test_what_moves_already_may_be_excluded() -> None:
    for method, others in (
        (methods.snfs(0.3).on("*", exclude=("2",)), ["0.weight", "4.weight", "6.weight", "8.weight"]),
        (methods.snfs(0.3).on(exclude=("2", "4")), ["0.weight", "6.weight"]),
        (methods.width(mature=0).on(exclude=("2",)), ["4", "6"]),
    ):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters())
        attach(model, optimizer, methods.rigl(0.5).on("2"))
        assert [*attach(model, optimizer, method).units] == others


@pytest.mark.parametrize("storage", ["auto", "masked"])
def test_columns_do_not_take_a_later_layer_because_another_method_has_the_first(storage: Any) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(model, optimizer, methods.rigl(0.5).on("0", storage=storage))
    with pytest.raises(ConfigError, match=r"0\.weight sees the input of the model, and rigl moves it already"):
        attach(model, optimizer, methods.random_columns(4))


def test_what_moves_in_a_part_that_was_attached_by_itself_is_seen_from_the_whole() -> None:
    part = net()
    whole = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), part).double()
    attach(part, torch.optim.AdamW(part.parameters()), methods.rigl(0.5).on("2", storage="masked"))
    optimizer = torch.optim.AdamW(whole.parameters())
    with pytest.raises(ConfigError, match=r"2\.2\.weight is moved by rigl already"):
        attach(whole, optimizer, methods.snfs(0.3).on("2.2", storage="masked"))
    assert "2.2.weight" not in attach(whole, optimizer, methods.snfs(0.3)).units


def test_accounts_have_rows_that_are_held_from_their_first_touch() -> None:
    model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    rows = realloc.attach(model, optimizer, methods.touched_rows(20))
    weights = attach(model, optimizer, methods.rigl(0.5).on("1"))
    model(torch.arange(5)).sum().backward()
    optimizer.step()
    (account,) = realloc.accounts(model)
    assert rows.held == 40 and account.currency == "parameters"
    assert (account.budget, account.held) == (rows.budget + weights.budget, rows.held + weights.held)


# records ---------------------------------------------------------------------------------------------------------


def test_two_handles_write_to_one_path(tmp_path: Path) -> None:
    path, model = tmp_path / "events.jsonl", net()
    optimizer = torch.optim.AdamW(model.parameters())
    for method, record in ((methods.rigl(0.3).on("2"), path), (methods.width(mature=0).on("4"), str(path))):
        attach(model, optimizer, method, record=record)
    for number in range(8):
        step(model, optimizer, number=number)
    lines = read(path).lines
    assert [(line["step"], [*line["sites"]]) for line in lines] == [(n, [s]) for n in (4, 8) for s in ("2.weight", "4")]
    path.unlink()
    model = net()
    attach(model, torch.optim.AdamW(model.parameters()), methods.rigl(0.3).on("2"), record=path)
    assert not read(path).lines
