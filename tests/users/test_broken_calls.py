"""Calls that plain torch refuses are refused, and an interrupt leaves a model that trains on."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import realloc
from realloc import methods
from realloc.errors import StateError
from realloc.pool.found import find


class Interrupts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.now = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.now:
            raise KeyboardInterrupt
        return x


def attached(density: float = 0.3) -> tuple[nn.Sequential, torch.optim.Optimizer, realloc.Handle]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), Interrupts(), nn.Linear(32, 24), nn.Linear(24, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    handle = realloc.attach(model, optimizer, methods.rigl(density), schedule=realloc.every(2, total=40))
    return model, optimizer, handle


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(torch.randn(8, 16)), torch.randint(4, (8,))).backward()
        optimizer.step()


@pytest.mark.parametrize("density", [0.3, 0.9])
@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (2, 32), (64, 12), (8, 1, 4, 4)])
def test_an_input_of_another_width_is_refused(shape, density):
    model, _, _ = attached(density)
    with pytest.raises(RuntimeError, match="the layer takes"):
        model(torch.zeros(shape))


def test_a_bias_of_another_kind_is_refused():
    model, _, _ = attached()
    model[0].bias.data = model[0].bias.data.double()
    with pytest.raises(RuntimeError, match=r"bias is torch\.float64"):
        model(torch.zeros(2, 16))


def test_an_interrupt_inside_a_forward_leaves_the_model_whole():
    model, optimizer, handle = attached()

    def go(steps: int) -> None:
        train(model, optimizer, steps)

    go(3)
    model[1].now = True
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(8, 16))
    model[1].now = False
    x = torch.randn(8, 16)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    go(9)
    assert handle.moves > 3 and torch.allclose(realloc.export.dense(model)(x), model(x), atol=1e-6)


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_an_interrupt_inside_a_move_is_named_and_a_checkpoint_mends_it(storage, monkeypatch):
    """Between the gather and the places: values and places belong together no more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    method = methods.rigl(0.3).on("*", storage=storage)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=40))

    def go(steps: int) -> None:
        train(model, optimizer, steps)

    go(3)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    pool = next(iter(handle.sites.values())).pool

    def interrupted(places: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(1)
    monkeypatch.undo()
    acts = (lambda: model(torch.zeros(2, 16)), lambda: go(1), model.state_dict, handle.compact, handle.detach)
    for act in (*acts, handle.summary):
        with pytest.raises(StateError, match="a move was interrupted"):
            act()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    go(5)
    assert handle.held == handle.budget and handle.moves == 4


def test_an_interrupt_inside_a_validation_does_not_swallow_the_gradients_of_training():
    """A view that was made without gradients takes those of a later step and keeps them."""
    model, optimizer, _ = attached()
    model[1].now = True
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model(torch.zeros(2, 16))
    model[1].now = False
    pool = dict(model.named_parameters())["realloc_pool0"]
    for _ in range(3):
        before = pool.detach().clone()
        optimizer.zero_grad()
        cross_entropy(model(torch.randn(8, 16)), torch.randint(4, (8,))).backward()
        assert pool.grad is not None and bool(pool.grad.any())
        optimizer.step()
        assert not torch.equal(pool, before)


def test_gradients_within_a_forward_that_has_none():
    """As test-time adaptation does it."""
    model, _, _ = attached()
    pool = dict(model.named_parameters())["realloc_pool0"]
    with torch.no_grad():
        holdings = find(model)
        assert holdings is not None
        holdings.open()
        with torch.enable_grad():
            model[0](torch.randn(8, 16)).sum().backward()
        holdings.close()
    assert pool.grad is not None and bool(pool.grad.any())


def test_training_beside_a_thread_that_infers():
    """Neither the gradients nor the moves of the one are seen by the other, and the other waits for a move."""
    model, optimizer, handle = attached()
    stop, wrong = threading.Event(), []

    def infer() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    model(torch.zeros(4, 16))
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=infer)
    thread.start()
    pool = dict(model.named_parameters())["realloc_pool0"]
    try:
        for _ in range(60):
            optimizer.zero_grad()
            cross_entropy(model(torch.randn(8, 16)), torch.randint(4, (8,))).backward()
            assert pool.grad is not None
            optimizer.step()
    finally:
        stop.set()
        thread.join()
    assert handle.moves > 15 and not any("interrupted" in str(error) for error in wrong)
