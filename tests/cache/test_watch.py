"""What is cached is dropped at the first look after anything below the frozen end is another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo import batch, bert, fresh, stack, texts

import realloc
from realloc import Cache, methods
from realloc.cache.watch import Watch
from realloc.errors import ReallocWarning, StateError

Change = Callable[[nn.Module], object]


def flipped(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return output.flip(-1) if isinstance(output, Tensor) else (output[0].flip(-1), *output[1:])


def flipped_before(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].flip(-1),)


def another_weight(model: nn.Module) -> None:
    dense = model.bert.encoder.layer[0].output.dense
    dense.weight = nn.Parameter(dense.weight.detach() * 1.5)


def another_module(model: nn.Module) -> None:
    torch.manual_seed(5)
    model.bert.encoder.layer[0].output.dense = nn.Linear(48, 32)


def another_block(model: nn.Module) -> None:
    other, _ = fresh(bert, seed=5)
    model.bert.encoder.layer[0] = other.bert.encoder.layer[0]


def more_in_it(model: nn.Module) -> None:
    nn.utils.parametrize.register_parametrization(
        model.bert.encoder.layer[0].output.dense, "weight", nn.Softplus(), unsafe=True
    )


CHANGES: dict[str, Change] = {
    "another weight": another_weight,
    "another module": another_module,
    "another block": another_block,
    "parametrized": more_in_it,
    "hook": lambda model: model.bert.encoder.layer[0].register_forward_hook(flipped),
    "pre-hook": lambda model: model.bert.encoder.layer[1].register_forward_pre_hook(flipped_before),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_replaced_or_hooked_below_is_noticed_at_once(name: str) -> None:
    rows, _ = texts()
    given = batch(rows, [0, 1, 2, 3])
    model, optimizer = fresh(bert)
    handle = realloc.attach(model, optimizer, methods.topk(1, cache=Cache(dtype="float32")))
    model(**given)
    plain, _ = fresh(bert)
    before = plain(**given).logits
    for each in (model, plain):
        CHANGES[name](each)
    with pytest.warns(ReallocWarning, match="RA102"):
        found = model(**given).logits
    assert handle.hits == 0.0
    assert torch.allclose(found, plain(**given).logits, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-4)  # else nothing was changed that matters
    assert torch.equal(model(**given).logits, found)
    assert handle.hits == 0.5  # and what is cached now is read


def test_a_hook_that_is_gone_again_counts_too() -> None:
    model = stack()
    hook = model[0].register_forward_hook(flipped)
    watch = Watch(model, [model[0], model[1]])
    hook.remove()
    assert watch.changed() and not watch.changed()


def test_a_module_put_in_later_is_watched_as_the_one_before() -> None:
    model = stack()
    watch = Watch(model, [model[0], model[1]])
    old = model[0]
    model[0] = nn.Linear(6, 16)
    assert watch.changed() and not watch.changed()
    with torch.no_grad():
        old.weight.mul_(2)
        assert not watch.changed()
        model[0].weight.mul_(2)
    assert watch.changed()


def test_what_is_not_below_may_change() -> None:
    """Also a module that a lower one shares with the upper ones: it trains."""
    shared = nn.Linear(4, 4)
    low, high = nn.Sequential(nn.Linear(4, 4), shared), nn.Sequential(shared)
    model = nn.Sequential(low, high)
    watch = Watch(model, [low, low[0]])
    with torch.no_grad():
        shared.weight.mul_(2)
    model[1] = nn.Linear(4, 4)
    assert not watch.changed()
    with torch.no_grad():
        low[0].bias.add_(1)
    assert watch.changed()


def test_values_that_lie_elsewhere_are_noticed_at_once() -> None:
    """``.data = ...`` raises no version, and the sum of each tensor is looked at in its turn only."""
    layers = [nn.Linear(3, 3) for _ in range(4)]
    model = nn.Sequential(*layers)
    watch = Watch(model, layers)
    for tensor in [*model.parameters(), *model.parameters()]:
        version = tensor._version
        tensor.data = tensor.data * 1.5
        assert tensor._version == version
        assert watch.changed() and not watch.changed()


def test_the_last_frozen_block_cannot_be_replaced() -> None:
    rows, _ = texts()
    model, optimizer = fresh(bert)
    realloc.attach(model, optimizer, methods.topk(3, cache=Cache(dtype="float32")))
    model(**batch(rows, [0, 1]))
    another_block(model)
    with pytest.warns(ReallocWarning, match="RA102"), pytest.raises(StateError, match=r"did not run.*attach"):
        model(**batch(rows, [0, 1]))
