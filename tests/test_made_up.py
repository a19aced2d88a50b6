"""A last decision that was skipped is made up for: weights, ranks, widths (columns have a test of their own)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import realloc
from realloc import methods
from realloc.handle import Handle
from realloc.schedule import linear

FALLING: dict[str, Callable[[], Any]] = {
    "gmp": lambda: methods.gmp(0.3), "granet": lambda: methods.granet(0.3),
    "adalora": lambda: replace(methods.adalora(rank=4), held=linear(1.5, 1.0)), "para": lambda: methods.para(rank=2),
    "narrow": lambda: methods.narrow(0.5),
}  # fmt: skip
LEVEL: dict[str, Callable[[], Any]] = {
    "rigl": lambda: methods.rigl(0.3), "random_ranks": lambda: methods.random_ranks(rank=2),
    "width": lambda: methods.width(mature=0),
}  # fmt: skip
SCHEDULE = realloc.every(4, until=12, total=30)


def made(method: Any, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, Handle]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    realloc.prepare(model, method)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    handle = realloc.attach(model, optimizer, method, schedule=SCHEDULE)
    assert isinstance(handle, Handle)
    return model, optimizer, handle


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, factor: float = 1.0) -> None:
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(32, 8, generator=draw, dtype=torch.float64)
    optimizer.zero_grad()
    (nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long() + (x[:, 1] > 0.5)) * factor).backward()
    optimizer.step()


def broken(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """A step whose gradient is NaN, which the user takes back."""
    values, state = [p.detach().clone() for p in model.parameters()], copy.deepcopy(optimizer.state_dict()["state"])
    step_on(model, optimizer, number, float("nan"))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def ended(method: Any) -> int:
    """What is held where nothing went wrong."""
    model, optimizer, handle = made(method)
    for number in range(16):
        step_on(model, optimizer, number)
    return handle.held


@pytest.mark.filterwarnings(r"ignore:\[RA00[13]\]")  # the skipped decision says so
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("name", FALLING)
def test_a_budget_that_falls_arrives(name: str, resumed: bool) -> None:
    method = FALLING[name]()
    model, optimizer, handle = made(method)
    start = handle.held
    for number in range(11):
        step_on(model, optimizer, number)
    before = handle.held
    broken(model, optimizer, 11)
    wanted = ended(method)
    assert handle.steps == 12 and handle.held == before > wanted and start > wanted and handle.next_due == 16
    other, second, twin = made(method, seed=2)
    other.load_state_dict(model.state_dict())
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if resumed:
        model, other, optimizer, second, handle, twin = other, model, second, optimizer, twin, handle
    for number in range(12, 22):
        for one, its in ((model, optimizer), (other, second)):
            step_on(one, its, number)
        assert handle.held + handle.parked == handle.budget
        assert (handle.held == before) if number < 15 else (handle.held <= wanted)
        assert handle.next_due == (16 if number < 15 else None), "what was made up for is due no more"
    assert abs(handle.held - wanted) <= wanted // 4
    mine, its = model.state_dict(), other.state_dict()
    assert all(torch.equal(mine[key], its[key]) for key in mine), "a resume goes on bit for bit"


def test_that_nothing_moved_is_said_when_nothing_is_owed_any_more() -> None:
    model, optimizer, handle = made(methods.para(rank=2))
    for number in range(11):
        step_on(model, optimizer, number)
    with pytest.warns(realloc.errors.ReallocWarning, match=r"RA001") as said:
        broken(model, optimizer, 11)
        for number in range(12, 20):
            step_on(model, optimizer, number)
    assert handle.moves == 1 and len(said) == 1, [str(one.message) for one in said]


@pytest.mark.filterwarnings(r"ignore:\[RA00[13]\]")
@pytest.mark.parametrize("name", LEVEL)
def test_a_budget_that_stays_owes_nothing(name: str) -> None:
    model, optimizer, handle = made(LEVEL[name]())
    for number in range(11):
        step_on(model, optimizer, number)
    broken(model, optimizer, 11)
    stamp = handle._engine.holdings.compute_stamp()
    assert handle.next_due is None
    for number in range(12, 22):
        step_on(model, optimizer, number)
    assert handle._engine.holdings.compute_stamp() == stamp
