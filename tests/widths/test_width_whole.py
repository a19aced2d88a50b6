"""Without an example the model is asked at its first forward of training whether its own code follows its widths."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from wide_nets import attached, data, mlp, step_on, widths

import realloc
from realloc import methods
from realloc.errors import ConfigError


class Net(nn.Module):
    """A body of two hidden layers, a head that may read the first one's units, and a forward that is given."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.value, self.run = mlp(6, 16, 12, 3), nn.Linear(16, 3).double(), run
        self.kept: Tensor | None = None

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.kept = output

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def reader(net: Any, x: Tensor) -> Tensor:
    h = net.body[:2](x)
    return net.body[2:](h) + net.value(h)


def tapped(net: Any, x: Tensor) -> Tensor:
    return net.body(x) + net.value(net.kept)


def target(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        aim = net.value(net.body[:2](x))
    return net.body(x) - aim


def counted(net: Any, x: Tensor) -> Tensor:
    return net.body(x) * net.body[:2](x).shape[1]


def whole(net: Any, x: Tensor) -> Tensor:
    return net.body(x) + x[:, :3]


def loop(net: Any, x: Tensor) -> Tensor:
    for layer in net.body:
        x = layer(x)
    return x


def in_pieces(net: Any, x: Tensor) -> Tensor:
    return checkpoint_sequential(net.body, 2, x, use_reentrant=False) + checkpoint(net.body, 2 * x, use_reentrant=False)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


METHODS = {"narrow": methods.narrow(0.5), "redo": methods.redo(0.9), "width": methods.width(mature=0)}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("run", [reader, tapped, target, counted])
def test_a_reader_outside_the_sequential_is_refused_before_anything_is_trained(run: Any, name: str) -> None:
    model = Net(run)
    if run is tapped:
        model.body[1].register_forward_hook(model.keep)
    before = copy.deepcopy(model.state_dict())
    optimizer, handle = attached(METHODS[name], model, gap=1, total=4)
    word = rf"width of 'body\.0' cannot move under {name}.*one (more unit|unit more).*method\.on\(example=inputs\)"
    with pytest.raises(ConfigError, match=word):
        step_on(model, optimizer, 0)
    assert handle.moves == handle.steps == 0
    handle.detach()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("run", [whole, loop, in_pieces])
def test_what_follows_is_let_through_however_it_runs(run: Any) -> None:
    model = Net(run)
    optimizer, handle = attached(methods.narrow(0.5), model, gap=1, total=4)
    random = torch.get_rng_state()
    for number in range(4):
        step_on(model, optimizer, number)
    assert widths(handle)["body.0"] < 16 and handle.steps == 4
    assert torch.equal(random, torch.get_rng_state())


def test_with_an_example_the_head_of_its_own_follows() -> None:
    pytest.importorskip("torch_pruning")
    model = Net(reader)
    method = methods.narrow(0.5).on(example=data(0, 6, rows=2))
    optimizer, handle = attached(method, model, gap=1, total=4)
    for number in range(4):
        step_on(model, optimizer, number)
    assert "body.0" in widths(handle) and model.value.in_features == widths(handle)["body.0"] < 16


def test_it_is_asked_once_and_only_in_training() -> None:
    model = Net(reader)
    optimizer, _ = attached(methods.width(), model)
    own = hooks_of(model)
    with torch.no_grad():
        model(data(0, 6))
    model.eval()
    model(data(0, 6))
    model.train()
    assert hooks_of(model) == own
    with pytest.raises(ConfigError, match="cannot move under width"):
        step_on(model, optimizer, 0)
    assert hooks_of(model) == own - 1


def test_copies_of_an_attached_model_are_not_asked() -> None:
    model = Net(whole)
    attached(methods.width(), model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False), realloc.export.dense(model)):
        twin.run = reader
        twin(data(0, 6)).sum().backward()  # its units move no more


def test_what_never_moves_is_not_asked() -> None:
    model = Net(reader)
    optimizer, handle = attached(methods.uniform_widths(), model)
    step_on(model, optimizer, 0)
    assert handle.steps == 1


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains() -> None:
    torch._dynamo.reset()
    for part in (False, True):
        model = Net(whole)
        optimizer, handle = attached(methods.random_widths(drop=0.4, mature=0), model, gap=2, total=10)
        if part:
            model.body.compile(backend="aot_eager")
        run = model if part else torch.compile(model, backend="aot_eager")
        for number in range(4):
            optimizer.zero_grad()
            run(data(number, 6)).square().mean().backward()
            optimizer.step()
        assert handle.moves == 2
        torch._dynamo.reset()
