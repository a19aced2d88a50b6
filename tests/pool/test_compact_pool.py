"""compact(): parked slots given back, everything else as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import realloc
from realloc import methods
from realloc.errors import RecordError

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def build(storage: str = "packed", cls: type = torch.optim.AdamW, seed: int = 0, make=methods.granet):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    optimizer = cls(model.parameters(), lr=0.02)
    method = make(0.2).on("*", storage=storage)
    return model, optimizer, realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=20), seed=seed)


def go(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("at", [11, 20])
@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_shorter_with_the_same_outputs_and_the_same_training(cls, storage, at):
    model, optimizer, handle = build(storage, cls)
    twin, twin_optimizer, twin_handle = build(storage, cls)
    go(model, optimizer, 0, at)
    go(twin, twin_optimizer, 0, at)
    before, parked, budget = model(X).detach(), handle.parked, handle.budget
    assert parked > 20
    assert handle.compact() == parked
    assert handle.parked == 0 and handle.budget == handle.held == budget - parked
    assert torch.equal(model(X), before)
    if storage == "packed":
        (pool,) = {site.pool for site in handle.sites.values()}
        lengths = [pool.parameter, pool.columns, *(v for v in optimizer.state[pool.parameter].values() if v.ndim)]
        assert [len(t) for t in lengths] == [handle.held] * len(lengths)
    assert handle.compact() == 0
    go(model, optimizer, at, 26)
    go(twin, twin_optimizer, at, 26)
    for name in handle.sites:
        assert torch.equal(handle.mask(name), twin_handle.mask(name))
    assert torch.equal(model(X), twin(X))
    assert handle.held + handle.parked == handle.budget == budget - parked


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("make", [methods.granet, methods.gmp])
@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_the_state_of_a_compacted_model_loads_into_a_fresh_one(storage, make, prepared):
    model, optimizer, handle = build(storage, make=make)
    go(model, optimizer, 0, 13)
    handle.compact()
    saved, moments = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    go(model, optimizer, 13, 22)
    fresh, other, second = build(storage, make=make, seed=5)
    go(fresh, other, 0, 3)
    if prepared:
        second.detach()
        fresh, other, _ = build(storage, make=make, seed=5)
        fresh = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        realloc.prepare(fresh, make(0.2).on("*", storage=storage))
        fresh.load_state_dict(saved)
        other = torch.optim.AdamW(fresh.parameters(), lr=0.02)
        second = realloc.attach(
            fresh, other, make(0.2).on("*", storage=storage), schedule=realloc.every(2, total=20), seed=0
        )
    else:
        fresh.load_state_dict(saved)
    other.load_state_dict(moments)
    go(fresh, other, 13, 22)
    assert torch.equal(fresh(X), model(X))
    assert second.held + second.parked == second.budget == handle.budget


@pytest.mark.parametrize("storage", ["packed", "masked", "auto"])
def test_one_that_parked_slots_again_loads_too(storage):
    model, optimizer, handle = build(storage)
    go(model, optimizer, 0, 9)
    handle.compact()
    go(model, optimizer, 9, 14)
    assert handle.parked
    saved, moments = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    go(model, optimizer, 14, 22)
    fresh, other, second = build(storage, seed=5)
    fresh.load_state_dict(saved)
    other.load_state_dict(moments)
    go(fresh, other, 14, 22)
    assert torch.equal(fresh(X), model(X)) and second.parked == handle.parked and second.budget == handle.budget


@pytest.mark.parametrize("change", [-1, 1, -10_000])
def test_a_shorter_budget_that_does_not_fit_its_slots_is_refused(change):
    model, optimizer, handle = build()
    go(model, optimizer, 0, 13)
    handle.compact()
    state = model.state_dict()
    state["realloc_book"][-1] += change
    fresh, *_ = build()
    untouched = fresh(X).detach()
    with pytest.raises(RecordError, match="budget"):
        fresh.load_state_dict(state)
    assert torch.equal(fresh(X), untouched)


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_the_state_loads_into_an_equal_compacted_model(storage):
    model, optimizer, handle = build(storage)
    go(model, optimizer, 0, 20)
    handle.compact()
    saved, moments = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    out = model(X).detach()
    go(model, optimizer, 20, 24)
    model.load_state_dict(saved)
    optimizer.load_state_dict(moments)
    assert torch.equal(model(X), out)
    go(model, optimizer, 20, 22)


def test_an_averaged_copy_that_follows_is_shortened_too():
    model, optimizer, handle = build()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0))
    handle.follow(average)
    go(model, optimizer, 0, 11)
    handle.compact()
    go(model, optimizer, 11, 20)
    average.update_parameters(model)
    assert torch.equal(average(X), model(X))


def test_several_pools_and_detach_after():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    optimizer = torch.optim.AdamW([{"params": [*model[0].parameters()]}, {"params": [*model[2].parameters()]}], lr=0.02)
    handle = realloc.attach(model, optimizer, methods.gmp(0.25).on("*"), schedule=realloc.every(2, total=20))
    go(model, optimizer, 0, 12)
    handle.compact()
    out = model(X).detach()
    go(model, optimizer, 12, 13)
    go(model, optimizer, 13, 20)
    handle.compact()
    out = model(X).detach()
    handle.detach()
    torch.testing.assert_close(model(X), out)
    go(model, optimizer, 20, 22)


def test_nothing_to_give_back():
    model, optimizer, handle = build(make=methods.rigl)
    go(model, optimizer, 0, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert handle.compact() == 0


def test_the_last_loss_of_the_loop_may_still_be_there():
    """Its graph holds the old length; the next backward must not meet it."""
    model, optimizer, handle = build(make=methods.gmp)
    go(model, optimizer, 0, 20)
    loss = model(X).square().mean()
    loss.backward()
    optimizer.step()
    assert handle.compact() > 0 and loss.grad_fn is not None
    before = model.realloc_pool0.detach().clone()
    go(model, optimizer, 20, 22)
    assert model.realloc_pool0.grad.shape == before.shape and not torch.equal(model.realloc_pool0, before)
    assert handle.steps == 23
