"""Layers that train under gradient checkpointing do train; one that does not is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo import ZOO, fresh, stack, train

import realloc
from realloc import Cache, methods
from realloc.errors import ReallocWarning


def checkpointed(name: str, **words: Any) -> nn.Module:
    model = ZOO[name]()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable(words)
    model.disable_input_require_grads()  # what enable() adds does not reach the layers above a prefix that is read
    return model


@pytest.mark.parametrize("cache", [Cache(dtype="float32"), None])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_reentrant_checkpoints_change_no_bit_of_the_training(name: str, cache: Cache | None) -> None:
    found = []
    for make in (ZOO[name], lambda: checkpointed(name, use_reentrant=True)):
        model, optimizer = fresh(make)
        before = copy.deepcopy(model.state_dict())
        handle = realloc.attach(model, optimizer, methods.topk(1, cache=cache))
        losses = train(model, optimizer, 6)
        now = model.state_dict()
        trains = next(key for key, on in handle.layers.items() if on)
        assert any(key.startswith(trains + ".") and not torch.equal(now[key], before[key]) for key in before)
        found.append((losses, {key: value for key, value in now.items() if not key.startswith("realloc")}))
    (losses, weights), (others, theirs) = found
    assert losses == others
    assert all(torch.equal(value, theirs[key]) for key, value in weights.items())


def test_a_decision_that_looks_at_every_gradient_sees_them_through_reentrant_checkpoints() -> None:
    seen = []
    for make in (ZOO["bert"], lambda: checkpointed("bert", use_reentrant=True)):
        model, optimizer = fresh(make)
        handle = realloc.attach(
            model, optimizer, methods.layer_gradient(budget=0.6), schedule=realloc.every(2, total=6)
        )
        train(model, optimizer, 4)
        seen.append((handle.layers, handle.moves))
    assert seen[0] == seen[1]


def test_checkpoints_that_are_not_reentrant_cost_no_gradient_of_the_input() -> None:
    model, optimizer = fresh(lambda: checkpointed("bert", use_reentrant=False))
    handle = realloc.attach(model, optimizer, methods.topk(1))
    wants: list[bool] = []
    lowest = next(m for n, m in model.named_modules() if handle.layers.get(n))
    lowest.attention.register_forward_pre_hook(lambda module, args: wants.append(args[0].requires_grad))
    train(model, optimizer, 1)
    assert wants and not any(wants)


class Deaf(nn.Module):
    """Whatever it holds is checkpointed by hand, so that nobody can see it from outside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out = checkpoint(self.inner, x, use_reentrant=True)
        assert torch.is_tensor(out)
        return out


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_a_layer_that_is_to_train_and_has_no_gradient_is_named() -> None:
    model, optimizer = fresh(stack)
    model[4] = Deaf(model[4])
    realloc.attach(model, optimizer, methods.topk(1))
    x = torch.randn(4, 6)
    optimizer.step()  # as some schedules have it, before anything was trained: nothing to judge by
    with pytest.warns(ReallocWarning, match=r"RA105.*'4'.*1 of 1 layers.*use_reentrant=False"):
        model(x).square().mean().backward()
        optimizer.step()
    model(x).square().mean().backward()
    optimizer.step()  # once


def test_a_model_that_is_not_trained_is_named_after_ten_steps() -> None:
    model, optimizer = fresh(stack)
    realloc.attach(model, optimizer, methods.topk(1))
    for _ in range(10):
        optimizer.step()
    with pytest.warns(ReallocWarning, match="RA105"):
        optimizer.step()


class Half(nn.Module):
    """A block with a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        out = self.used(x)
        assert torch.is_tensor(out)
        return out


def test_a_layer_with_one_gradient_is_heard() -> None:
    model, optimizer = fresh(stack)
    model[4] = Half()
    optimizer = torch.optim.AdamW(model.parameters())
    realloc.attach(model, optimizer, methods.topk(1))
    model(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()  # any warning is an error here
    assert model[4].used.weight.grad is not None and model[4].unused.weight.grad is None
