from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from toy import attached, batch, intact, masks, net, same, train, weights

import realloc
from realloc import methods
from realloc.handle import Handle

STORAGES = ["packed", "masked"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_model_in_another_dtype(dtype: torch.dtype, storage: str) -> None:
    model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage), optimizer=torch.optim.SGD)
    train(model, optimizer, 0, 5)
    dense = realloc.export.dense(model).to(dtype)
    model.to(dtype)
    x, _ = batch(0, dtype=dtype)
    assert model(x).dtype == dtype
    assert torch.allclose(model(x).float(), dense(x).float(), rtol=2e-2, atol=2e-2)
    train(model, optimizer, 5, 14, dtype=dtype)
    assert handle.moves == 3
    intact(handle)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_float64_model_from_the_start_follows_the_reference() -> None:
    model, optimizer, handle = attached(methods.static(density=0.2), model=net().double(), optimizer=torch.optim.SGD)
    dense = realloc.export.dense(model)
    held = masks(handle)
    plain = torch.optim.SGD(dense.parameters(), lr=1e-2)
    for step in range(6):
        train(model, optimizer, step, step + 1, dtype=torch.float64)
        train(dense, plain, step, step + 1, dtype=torch.float64)
        with torch.no_grad():
            for name, parameter in dense.named_parameters():
                if name in held:
                    parameter.mul_(held[name])
    for (name, a), b in zip(weights(model).items(), dense.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12), name


def test_an_input_of_the_wrong_dtype_names_the_layer() -> None:
    model, _, _ = attached()
    with pytest.raises(RuntimeError, match=r"0\.weight.*float64.*float32"):
        model(batch(0)[0].double())


def test_autocast_bf16_is_near_the_dense_model() -> None:
    model, optimizer, handle = attached()
    dense = realloc.export.dense(model)
    x, y = batch(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, wanted = model(x), dense(x)
    assert out.dtype == wanted.dtype == torch.bfloat16
    assert torch.allclose(out.float(), wanted.float(), atol=3e-2)
    for step in range(9):
        x, y = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert handle.moves == 2
    assert all(p.dtype == torch.float32 for p in model.parameters())
    intact(handle)


def _plain(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr)


def _fused(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, fused=True)


def _sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, foreach=True)


Poison = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def _everywhere(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    return loss * float("inf")


def _head_only(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """The classifier alone overflows: the pool's own gradient is finite and says nothing of the skip."""
    return loss + model[4].bias.sum() * float("inf")


def _scaled_step(scaler: Any, model: nn.Module, optimizer: Any, step: int, poison: Poison | None = None) -> None:
    optimizer.zero_grad()
    x, y = batch(step)
    loss = nn.functional.cross_entropy(model(x), y)
    if poison is not None:
        loss = poison(model, loss)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def _run(make: Any, storage: str, poison: Poison | None) -> tuple[nn.Module, Handle]:
    method = methods.rigl(density=0.2).on("0", "2", storage=storage)
    model, optimizer, handle = attached(method, optimizer=make)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6, backoff_factor=1.0 - 2**-40)
    for step in range(3):
        _scaled_step(scaler, model, optimizer, step)
    if poison is not None:  # the coming step is due
        before, kept, count = masks(handle), weights(model), handle.steps
        for step in (50, 51):
            _scaled_step(scaler, model, optimizer, step, poison)
        assert same(before, masks(handle)) and same(kept, weights(model))
        assert (handle.steps, handle.moves) == (count, 0)
    for step in range(3, 9):
        _scaled_step(scaler, model, optimizer, step)
    return model, handle


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("poison", [_everywhere, _head_only])
@pytest.mark.parametrize("make", [_plain, _fused, _sgd])
def test_a_step_that_the_scaler_skips_leaves_no_trace(make: Any, poison: Poison, storage: str) -> None:
    model, handle = _run(make, storage, poison)
    straight, other = _run(make, storage, None)
    assert handle.moves == other.moves == 2 and handle.steps == other.steps
    assert same(masks(handle), masks(other))
    for (name, a), b in zip(weights(model).items(), weights(straight).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name
    intact(handle)


@pytest.mark.parametrize("storage", STORAGES)
def test_gradients_thrown_away_are_not_looked_at(storage: str) -> None:
    """zero_grad() after a backward: what was collected for the decision goes with it."""

    def run(detour: bool, to_none: bool) -> dict[str, torch.Tensor]:
        model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage))
        train(model, optimizer, 0, 3)
        optimizer.zero_grad(set_to_none=to_none)
        if detour:
            (100 * model(batch(77)[0])).square().sum().backward()
            optimizer.zero_grad(set_to_none=to_none)
        x, y = batch(3)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert handle.moves == 1
        return masks(handle)

    for to_none in (True, False):
        assert same(run(True, to_none), run(False, to_none)), to_none


def test_the_optimizers_own_copy_survives_a_deepcopy_in_bf16() -> None:
    model, optimizer, _ = attached()
    train(model, optimizer, 0, 5)
    half = copy.deepcopy(model).to(torch.bfloat16)
    x, _ = batch(0)
    assert torch.allclose(half(x.bfloat16()).float(), model(x), atol=5e-2)
    assert model(x).dtype == torch.float32
