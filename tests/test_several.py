"""Several kinds of units on one model and one optimizer: each keeps its own exact budget, and a resume goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import realloc
from realloc import methods

STEPS, EVERY = 24, 4


class Net(nn.Module):
    """Two tables of ids and a small net behind."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = realloc.nn.Embedding(200, 8, rows="30%")
        self.body = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.ids(ids).mean(1))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def attach(model: Net, moving: Callable[[], Any]) -> tuple[torch.optim.Optimizer, Any, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = realloc.every(EVERY, total=STEPS)
    rows = realloc.attach(model, optimizer, methods.rows(), schedule=schedule)
    return optimizer, rows, realloc.attach(model, optimizer, moving(), schedule=schedule)


def step(model: Net, optimizer: torch.optim.Optimizer, number: int) -> float:
    generator = torch.Generator().manual_seed(number)
    ids = (torch.rand(32, 3, generator=generator) ** 3 * 200).long()
    target = (ids.sum(1) % 2).long()
    loss = nn.functional.cross_entropy(model(ids), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(
    "moving",
    [
        lambda: methods.rigl(density=0.3),
        lambda: methods.width(mature=0, drop=0.3),
        lambda: methods.adalora(2).on("body.*", train=("ids*",)),
        lambda: methods.auto_rgn(window=2),
    ],
    ids=["weights", "width", "ranks", "rates"],
)
def test_rows_and_another_kind_share_a_model_and_resume_bit_by_bit(moving: Callable[[], Any]) -> None:
    model = net()
    optimizer, rows, other = attach(model, moving)
    budgets = rows.budget, other.budget
    saved = None
    losses = []
    for number in range(STEPS):
        if number == EVERY + 2:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        losses.append(step(model, optimizer, number))
        assert (rows.budget, other.budget) == budgets
        assert rows.held + rows.parked == rows.budget
        assert other.held + other.parked == other.budget
    assert rows.moves and other.moves
    again = net()
    optimizer, rows, other = attach(again, moving)
    assert saved is not None
    again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert [step(again, optimizer, number) for number in range(EVERY + 2, STEPS)] == losses[EVERY + 2 :]


def test_detaching_one_leaves_the_other() -> None:
    model = net()
    optimizer, rows, other = attach(model, lambda: methods.rigl(density=0.3))
    for number in range(EVERY + 1):
        step(model, optimizer, number)
    other.detach()
    before = rows.steps
    step(model, optimizer, 99)
    assert rows.steps == before + 1
    rows.detach()
    step(model, optimizer, 100)
