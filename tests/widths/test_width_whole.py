"""Without an example an nn.Sequential is taken at its word, and the forwards before the first step must keep it."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from wide_nets import attached, data, mlp, step_on, widths

import realloc
from realloc import methods
from realloc.errors import ConfigError


class ActorCritic(nn.Module):
    """A head of its own reads units that the nn.Sequential makes."""

    def __init__(self, alone: bool = True) -> None:
        super().__init__()
        self.body, self.value, self.alone = mlp(6, 16, 3), nn.Linear(16, 3).double(), alone

    def forward(self, x: Tensor) -> Tensor:
        if not self.alone:
            return self.body(x) + x[:, :3]
        h = self.body[:2](x)
        return self.body[2](h) + self.value(h)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("method", [methods.narrow(0.5), methods.redo(0.9), methods.width(mature=0)])
def test_a_layer_that_is_called_by_itself_is_refused_with_the_remedy(method: Any) -> None:
    model = ActorCritic()
    before = copy.deepcopy(model.state_dict())
    optimizer, handle = attached(method, model, gap=1, total=4)
    word = rf"body\.0 runs by itself, outside the forward of body.*{method.name} moves.*method\.on\(example=inputs\)"
    with pytest.raises(ConfigError, match=word):
        step_on(model, optimizer, 0)
    assert handle.moves == handle.steps == 0
    handle.detach()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_with_an_example_the_head_of_its_own_follows() -> None:
    pytest.importorskip("torch_pruning")
    model = ActorCritic()
    method = methods.narrow(0.5).on(example=data(0, 6, rows=2))
    optimizer, handle = attached(method, model, gap=1, total=4)
    for number in range(4):
        step_on(model, optimizer, number)
    assert list(widths(handle)) == ["body.0"] and model.value.in_features == widths(handle)["body.0"] < 16


def test_a_whole_is_let_through_and_the_look_ends_with_the_first_step() -> None:
    model = ActorCritic(alone=False)
    own = hooks_of(model)
    optimizer, handle = attached(methods.width(drop=0.4, mature=0), model, gap=3, total=30)
    assert hooks_of(model) == own + 2 + 2 + 2  # the model's, of the whole, of its two layers
    for number in range(2):
        step_on(model, optimizer, number)
    assert hooks_of(model) == own + 2
    with torch.no_grad():
        assert torch.equal(model.body[:2](data(0, 6)), realloc.export.dense(model).body[:2](data(0, 6)))
    model.body[0](data(0, 6)).sum().backward()  # not looked at any more
    assert handle.steps == 2


def test_before_training_parts_may_be_looked_at_without_gradients() -> None:
    model = ActorCritic(alone=False)
    attached(methods.width(), model)
    with torch.no_grad():
        assert model.body[:2](data(0, 6)).shape == (16, 16)


class Nested(nn.Module):
    """Nested ones, run by the outermost, checkpointed and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(*mlp(6, 12)), nn.ReLU(), nn.Sequential(*mlp(12, 10, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + checkpoint(self.body, 2 * x, use_reentrant=False)


def test_nested_ones_are_run_by_the_outermost() -> None:
    model = Nested()
    optimizer, handle = attached(methods.width(drop=0.4, mature=0), model, gap=1, total=10)
    for number in range(3):
        step_on(model, optimizer, number)
    assert list(widths(handle)) == ["body.0.0", "body.2.0"] and handle.steps == 3
    again = Nested()
    again.forward = lambda x: again.body[2](again.body[1](again.body[0](x)))  # type: ignore[method-assign]
    optimizer, _ = attached(methods.width(), again)
    with pytest.raises(ConfigError, match=r"body\.\d\.0 runs by itself"):
        step_on(again, optimizer, 0)


def test_a_whole_that_failed_is_over() -> None:
    model = ActorCritic()
    optimizer, _ = attached(methods.width(), model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model.body(data(0, 5))
    with pytest.raises(ConfigError, match=r"body\.0 runs by itself"):
        step_on(model, optimizer, 0)


def test_copies_of_an_attached_model_are_not_looked_at() -> None:
    model = ActorCritic(alone=False)
    attached(methods.width(), model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False), realloc.export.dense(model)):
        twin.alone = True
        twin(data(0, 6)).sum().backward()  # its units move no more


def test_what_never_moves_is_not_looked_at() -> None:
    model = ActorCritic()
    optimizer, handle = attached(methods.uniform_widths(), model)
    step_on(model, optimizer, 0)
    assert handle.steps == 1


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_whole_is_let_through() -> None:
    """Whatever torch.compile traces and whatever runs eagerly: the whole and its layers are seen alike."""
    torch._dynamo.reset()
    for compiled_part in (False, True):
        model = ActorCritic(alone=False)
        optimizer, handle = attached(methods.random_widths(drop=0.4, mature=0), model, gap=2, total=10)
        if compiled_part:
            model.body.compile(backend="aot_eager")
        run = model if compiled_part else torch.compile(model, backend="aot_eager")
        for number in range(4):
            optimizer.zero_grad()
            run(data(number, 6)).square().mean().backward()
            optimizer.step()
        assert handle.moves == 2
        torch._dynamo.reset()
