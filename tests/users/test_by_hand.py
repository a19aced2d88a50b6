"""Gradients that no backward of this step brought: set by hand, stepped on twice, asked for elsewhere, exactly zero."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from toy import attached, batch, intact, loss_of, masks, net, same, train, weights

import realloc
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


def train_by_grad(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """As second-order and differentially private loops do it."""
    parameters = list(model.parameters())
    for step in range(steps):
        optimizer.zero_grad()
        found = torch.autograd.grad(loss_of(model, step, torch.float64), parameters)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_set_by_hand_train_as_those_of_a_backward(storage: str) -> None:
    method = methods.sparse_evolution(density=0.3).on("*", storage=storage)  # needs no gradient to decide
    model, optimizer, handle = attached(method, model=net().double())
    other, second, _ = attached(method, model=net().double())
    train_by_grad(model, optimizer, 9)
    train(other, second, 0, 9, dtype=torch.float64)
    assert same(weights(model), weights(other)) and handle.moves == 2
    intact(handle)


def test_a_decision_by_gradient_needs_a_backward_and_says_so() -> None:
    model, optimizer, handle = attached(model=net().double())
    before = masks(handle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReallocWarning)
        train_by_grad(model, optimizer, 5)
    told = [str(w.message) for w in caught if issubclass(w.category, ReallocWarning)]
    assert len(told) == 1 and "call it, or use storage='masked'" in told[0]
    assert same(before, masks(handle)) and handle.moves == 0


def test_masked_sites_measure_a_gradient_set_by_hand() -> None:
    method = methods.rigl(density=0.3).on("*", storage="masked")
    model, optimizer, _ = attached(method, model=net().double())
    other, second, handle = attached(method, model=net().double())
    train_by_grad(model, optimizer, 5)
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


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("scale", [2.0**16, 3.0])
@pytest.mark.parametrize("make", [methods.rigl, methods.snfs])
def test_a_scaled_loss_decides_records_and_starts_moments_as_the_plain_one(make, scale: float, storage: str) -> None:
    """Gradients are looked at as the optimizer sees them: unscaled, though backward brought them scaled."""
    events: dict[bool, list[dict[str, object]]] = {True: [], False: []}

    class Sink:
        def __init__(self, scaled: bool) -> None:
            self.scaled = scaled

        def decision(self, event: dict[str, object]) -> None:
            events[self.scaled].append(event)

    def run(scaled: bool) -> dict[str, Tensor]:
        method = replace(make(density=0.3).on("*", storage=storage), moments="seed")
        model = net().double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        realloc.attach(model, optimizer, method, schedule=realloc.every(4, total=60), record=Sink(scaled))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scaled, growth_interval=5)
        for step in range(21):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, step, torch.float64)).backward()
            if step % 2:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return weights(model)

    one, two = run(True), run(False)
    assert all(torch.allclose(one[name], two[name], atol=1e-9) for name in one)
    assert len(events[True]) == 5
    for scaled, plain in zip(events[True], events[False], strict=True):
        assert scaled["predicted_gain"] == pytest.approx(plain["predicted_gain"])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_gradient_zeroed_behind_the_back_of_its_version_is_thrown_away(storage: str) -> None:
    method = methods.rigl(density=0.3).on("*", storage=storage)

    def run(noise: bool) -> dict[str, Tensor]:
        model, optimizer, handle = attached(method, model=net().double(), every=1)
        for step in range(4):
            optimizer.zero_grad()
            if noise:
                (1e3 * loss_of(model, step + 50, torch.float64)).backward()
                for parameter in model.parameters():
                    parameter.grad.data.zero_()
            loss_of(model, step, torch.float64).backward()
            optimizer.step()
        assert handle.moves == 4
        return masks(handle)

    assert same(run(True), run(False))


def test_a_gradient_that_nobody_threw_away_still_updates_its_expert() -> None:
    """Without zero_grad torch steps an expert on the gradient of an earlier step."""

    class Switch(Experts):
        now = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.experts[self.now](x).relu())

    mine, dense = Switch().double(), Switch().double()
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}  # Adam counts steps for each tensor, a pool is one
    mine, optimizer, _ = attached(methods.static(density=1.0).on("*"), model=mine, optimizer=torch.optim.SGD, **sgd)
    plain = torch.optim.SGD(dense.parameters(), **sgd)
    for step, now in enumerate([0, 1, 1, 0, 0]):
        for model, stepper in ((mine, optimizer), (dense, plain)):
            model.now = now
            loss_of(model, step, torch.float64).backward()
            stepper.step()
    found = weights(mine)
    for name, parameter in dense.named_parameters():
        assert torch.allclose(found[name], parameter, atol=1e-12), name


def test_a_load_between_backward_and_step_brings_no_gradient_of_other_weights() -> None:
    model, optimizer, _ = attached(optimizer=torch.optim.SGD, lr=1.0)
    train(model, optimizer, 0, 2)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    train(model, optimizer, 2, 10)
    loss_of(model, 10).backward()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    before = {name: value for name, value in weights(model).items() if name in ("0.weight", "2.weight")}
    optimizer.step()
    assert same(before, {name: value for name, value in weights(model).items() if name in before})


def test_a_step_that_failed_leaves_nothing_to_put_back() -> None:
    """Its unused expert was remembered; the next step, which uses all, must not be undone."""

    class Both(Experts):
        used: tuple[int, ...] = (0,)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(sum(self.experts[i](x) for i in self.used).relu())

    def fails(*_: object) -> None:
        raise RuntimeError("no power")

    mine, optimizer, _ = attached(methods.static(density=1.0).on("*"), model=Both().double(), optimizer=torch.optim.SGD)
    dense = Both().double()
    plain = torch.optim.SGD(dense.parameters(), lr=1e-2)
    loss_of(mine, 0, torch.float64).backward()
    hook = optimizer.register_step_pre_hook(fails)
    with pytest.raises(RuntimeError, match="no power"):
        optimizer.step()
    hook.remove()
    mine.used = dense.used = (0, 1)
    for step in (1, 2):
        for model, stepper in ((mine, optimizer), (dense, plain)):
            stepper.zero_grad()
            loss_of(model, step, torch.float64).backward()
            stepper.step()
    found = weights(mine)
    for name, parameter in dense.named_parameters():
        assert torch.allclose(found[name], parameter, atol=1e-12), name
