"""A loop that trains another model than the attached one is told so, once, also where nothing would ever move."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.errors import ReallocWarning
from realloc.handle import Handle
from realloc.observe.silence import Silence


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def batches(count: int) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return (torch.randn(12, 6, generator=draw) for _ in range(count))


def train(model: nn.Module, optimizer: Any, steps: int, parts: int = 1) -> None:
    for batch in batches(steps):
        optimizer.zero_grad()
        for part in batch.chunk(parts):
            loss_of(model, part).backward()
        optimizer.step()


STILL = {
    "lora": lambda model: methods.lora(rank=2),
    "fixed": lambda model: methods.fixed({"0": 2, "2": 1}),
    "eva": lambda model: realloc.calibrate(model, batches(3), methods.eva(rank=2), loss=loss_of),
    "gora": lambda model: realloc.calibrate(model, batches(3), methods.gora(rank=2), loss=loss_of),
    "shira": lambda model: methods.shira(budget=20),
    "static": lambda model: methods.static(density=0.5),
}


def attached(name: str = "lora") -> tuple[nn.Module, torch.optim.Optimizer, Handle]:
    model = net()
    method: Any = STILL[name](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = None if name != "static" else realloc.every(5, total=40)
    return model, optimizer, realloc.attach(model, optimizer, method, schedule=schedule)


@contextmanager
def told(*codes: str) -> Iterator[list[str]]:
    """What is said inside, which are these codes."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in caught]
    assert [one.message.code for one in caught if isinstance(one.message, ReallocWarning)] == [*codes], said


@pytest.mark.parametrize("name", STILL)
def test_another_model_is_named_once_though_nothing_ever_moves(name: str) -> None:
    model, optimizer, handle = attached(name)
    stranger = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with told("RA008") as said:
        train(stranger, optimizer, 30)
        handle.summary()
    assert "no gradient has reached 0.weight or any of" in said[0] and "in 10 steps: is this the model" in said[0]
    after = model.state_dict()
    assert handle.steps == 30 and [*after] == [*before]
    assert all(torch.equal(value, after[key]) for key, value in before.items() if not key.endswith("book"))
    with told():
        train(model, optimizer, 12)


def test_a_copy_made_after_attach_is_another_model() -> None:
    model, optimizer, _ = attached()
    with told("RA008"):
        train(copy.deepcopy(model), optimizer, 30)


def test_a_model_that_trained_and_is_left_later_is_named() -> None:
    model, optimizer, _ = attached("shira")
    with told():
        train(model, optimizer, 15)
        train(net(), optimizer, 9)
    with told("RA008"):
        train(net(), optimizer, 12)


def test_fewer_than_ten_steps_in_a_row_are_no_matter() -> None:
    model, optimizer, handle = attached()
    with told():
        for _ in range(4):
            train(net(), optimizer, 9)
            handle.summary()
            train(model, optimizer, 1)
        train(net(), optimizer, 9)
        handle.detach()


def test_ten_steps_are_named_by_the_summary() -> None:
    _, optimizer, handle = attached()
    train(net(), optimizer, 10)
    with told("RA008"):
        handle.summary()
        handle.detach()


def test_a_model_that_trains_is_not_named_however_its_gradients_come() -> None:
    """Accumulated, behind a closure, for a part of the layers, set by hand, or frozen on purpose."""
    model, optimizer, handle = attached()
    with told():
        train(model, optimizer, 12, parts=3)
        for batch in batches(12):
            optimizer.zero_grad()
            loss_of(model[2:], model[0](batch).detach()).backward()  # type: ignore[index]
            optimizer.step()
        for batch in batches(12):

            def closure(batch: Tensor = batch) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
        for batch in batches(12):
            trained = [p for p in model.parameters() if p.requires_grad]
            for parameter, gradient in zip(trained, torch.autograd.grad(loss_of(model, batch), trained), strict=True):
                parameter.grad = gradient
            optimizer.step()
        for site in handle.sites.values():
            site.frozen = True  # type: ignore[union-attr]
        train(model, optimizer, 12)


@pytest.mark.parametrize("name", STILL)
def test_a_step_with_gradients_asks_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, handle = attached(name)
    train(model, optimizer, 6)  # after the last step of its schedule it is asked once
    for part in ("note", "length"):
        monkeypatch.setattr(Silence, part, property(lambda _: pytest.fail("a step in order was looked at")))
    train(model, optimizer, 6)
    train(model, optimizer, 6, parts=3)
    assert handle.steps == 18


def test_a_step_that_a_scaler_skips_is_none() -> None:
    """Only steps really taken count: the optimizer's own skipping runs the hooks as well."""
    _, optimizer, handle = attached()
    with told():
        train(net(), optimizer, 9)
        optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
        train(net(), optimizer, 20)
        handle.summary()
        assert handle.steps == 9
        del optimizer.found_inf  # type: ignore[attr-defined]
    with told("RA008"):
        train(net(), optimizer, 2)


def test_a_resume_counts_anew() -> None:
    model, optimizer, _ = attached()
    train(model, optimizer, 30)
    state, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    again, other, handle = attached()
    again.load_state_dict(state)
    other.load_state_dict(moments)
    with told():
        train(net(), other, 9)
        assert handle.steps == 39
        train(again, other, 3)
