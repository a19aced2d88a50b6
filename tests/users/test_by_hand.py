"""Gradients that no backward of this step brought: set by hand, stepped on twice, asked for elsewhere, exactly zero."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from toy import attached, batch, intact, loss_of, masks, net, same, train, weights

from realloc import methods
from realloc.errors import ReallocWarning

STORAGES = ["packed", "masked"]


class Experts(nn.Module):
    """Only the first expert is used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList([nn.Linear(12, 16), nn.Linear(12, 16)])
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.experts[0](x).relu())


def by_grad(model: nn.Module, step: int) -> None:
    """As second-order and differentially private loops do it."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss_of(model, step, torch.float64), parameters)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_set_by_hand_train_as_those_of_a_backward(storage: str) -> None:
    method = methods.sparse_evolution(density=0.3).on("*", storage=storage)  # needs no gradient to decide
    model, optimizer, handle = attached(method, model=net().double())
    other, second, _ = attached(method, model=net().double())
    for step in range(9):
        optimizer.zero_grad()
        by_grad(model, step)
        optimizer.step()
    train(other, second, 0, 9, dtype=torch.float64)
    assert same(weights(model), weights(other)) and handle.moves == 2
    intact(handle)


def test_a_decision_by_gradient_needs_a_backward_and_says_so() -> None:
    model, optimizer, handle = attached(model=net().double())
    before = masks(handle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReallocWarning)
        for step in range(5):
            by_grad(model, step)
            optimizer.step()
    told = [str(w.message) for w in caught if issubclass(w.category, ReallocWarning)]
    assert len(told) == 1 and "call it, or use storage='masked'" in told[0]
    assert same(before, masks(handle)) and handle.moves == 0


def test_masked_sites_measure_a_gradient_set_by_hand() -> None:
    method = methods.rigl(density=0.3).on("*", storage="masked")
    model, optimizer, _ = attached(method, model=net().double())
    other, second, handle = attached(method, model=net().double())
    for step in range(5):
        optimizer.zero_grad()
        by_grad(model, step)
        optimizer.step()
    train(other, second, 0, 5, dtype=torch.float64)
    assert same(weights(model), weights(other)) and handle.moves == 1
    for state in optimizer.state.values():
        for value in state.values():
            assert torch.isfinite(value).all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("to_none", [True, False])
def test_two_steps_on_one_backward_are_torchs_two_steps(storage: str, to_none: bool) -> None:
    dense, method = Experts().double(), methods.static(density=1.0).on("*", storage=storage)
    mine, optimizer, _ = attached(method, model=Experts().double())
    plain = torch.optim.AdamW(dense.parameters(), lr=1e-2)
    for step in range(4):
        for model, stepper in ((mine, optimizer), (dense, plain)):
            stepper.zero_grad(set_to_none=to_none)
            loss_of(model, step, torch.float64).backward()
            stepper.step()
            stepper.step()
    found = weights(mine)
    for name, parameter in dense.named_parameters():
        assert torch.allclose(found[name], parameter, atol=1e-12), name


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_asked_for_in_passing_do_not_enter_the_decision(storage: str) -> None:
    method = methods.rigl(density=0.3).on("*", storage=storage)
    model, optimizer, handle = attached(method, model=net().double())
    other, second, _ = attached(method, model=net().double())
    for step in range(9):
        optimizer.zero_grad()
        loss_of(model, step, torch.float64).backward()
        torch.autograd.grad(1e3 * loss_of(model, step + 100, torch.float64), list(model.parameters()))
        optimizer.step()
    train(other, second, 0, 9, dtype=torch.float64)
    assert same(weights(model), weights(other)) and handle.moves == 2


@pytest.mark.parametrize("storage", STORAGES)
def test_a_micro_batch_whose_held_gradient_is_zero_counts(storage: str) -> None:
    """Its gradient of what is not held is not zero, and it is the only one that shows it."""
    method = methods.rigl(density=0.2).on("*", storage=storage)

    def run(dead: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, optimizer, handle = attached(method, model=nn.Sequential(nn.Linear(12, 4)).double(), every=1, lr=0.0)
        unused = ~handle.mask("0.weight").any(0)  # inputs that no held weight reads
        assert unused.any()
        x, y = batch(0, dtype=torch.float64)
        for row in (x * unused, x * ~unused) if dead else (torch.cat([x * unused, x * ~unused]),):
            target = torch.nn.functional.one_hot(y.repeat(2 if not dead else 1), 4).double()
            (model(row) * target).sum().backward()
        optimizer.step()
        assert handle.moves == 1
        return masks(handle)

    assert same(run(True), run(False))


def test_inputs_gradients_alone_do_not_fill_the_memory() -> None:
    model, _, handle = attached(methods.snfs(density=0.3))
    x = batch(0)[0].requires_grad_()
    for _ in range(200):
        torch.autograd.grad(model(x).sum(), x)
    seen = [len(site.tap.seen) for site in handle.sites.values()]
    assert max(seen) < 50, seen
