from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from toy import attached, batch, hooks, intact, masks, net, same, train, weights

import realloc
from realloc import methods

STORAGES = ["packed", "masked"]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_deep_copy_is_a_model_of_its_own(storage: str) -> None:
    model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage))
    train(model, optimizer, 0, 7)
    twin = copy.deepcopy(model)
    x, _ = batch(0)
    assert torch.equal(twin(x), model(x))
    before, steps, moves = weights(model), handle.steps, masks(handle)
    own = torch.optim.SGD(twin.parameters(), lr=0.1)
    train(twin, own, 0, 9)  # would pass a due step, were the hooks of the original asked
    assert same(before, weights(model)) and same(moves, masks(handle)) and handle.steps == steps
    assert not same(before, weights(twin))
    train(model, optimizer, 7, 12)
    intact(handle)
    assert handle.moves == 3


def test_a_deep_copy_leaves_the_originals_candidates_alone() -> None:
    model, optimizer, _ = attached()
    train(model, optimizer, 0, 3)  # the next step is due: armed
    twin = copy.deepcopy(model)
    straight, other, handle = attached()
    train(straight, other, 0, 3)
    twin(batch(5)[0]).sum().backward()
    train(model, optimizer, 3, 4)
    train(straight, other, 3, 4)
    assert same(weights(model), weights(straight)) and handle.moves == 1


def test_a_deep_copy_can_be_attached_with_its_own_optimizer() -> None:
    model, optimizer, handle = attached()
    train(model, optimizer, 0, 6)
    twin = copy.deepcopy(model)
    own = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    second = realloc.attach(twin, own, methods.rigl(density=0.2), schedule=realloc.every(4, until=1.0, total=60))
    mine = masks(handle)
    train(twin, own, 6, 14)
    assert second.moves > handle.moves and same(mine, masks(handle))
    intact(second)
    second.detach()
    assert hooks(twin) == 0 and hooks(model) > 0


@pytest.mark.parametrize("storage", STORAGES)
def test_the_whole_module_through_torch_save(storage: str) -> None:
    model, optimizer, _ = attached(methods.rigl(density=0.2).on("*", storage=storage))
    train(model, optimizer, 0, 7)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x, _ = batch(0)
    assert torch.equal(again(x), model(x))
    own = torch.optim.AdamW(again.parameters(), lr=1e-2)
    method = methods.rigl(density=0.2).on("*", storage=storage)
    second = realloc.attach(again, own, method, schedule=realloc.every(4, until=1.0, total=60))
    train(again, own, 7, 12)
    intact(second)
    assert second.moves > 1


def test_export_of_a_running_model_is_plain_and_leaves_it_running() -> None:
    model, optimizer, handle = attached(methods.snfs(density=0.2))
    train(model, optimizer, 0, 6)
    dense = realloc.export.dense(model)
    assert hooks(dense) == 0 and list(dense.state_dict()) == list(net().state_dict())
    assert [type(m) for m in dense.modules()] == [type(m) for m in net().modules()]
    assert not [k for m in dense.modules() for k in m.__dict__ if k.startswith("realloc")]
    train(model, optimizer, 6, 9)
    assert handle.moves == 2


def test_export_inside_inference_mode() -> None:
    model, optimizer, _ = attached()
    train(model, optimizer, 0, 6)
    x, _ = batch(0)
    with torch.inference_mode():
        dense = realloc.export.dense(model)
        assert torch.allclose(dense(x), model(x), atol=1e-6)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), model(x))
    train(model, optimizer, 6, 9)


def test_a_copy_of_a_part_of_the_model_is_refused_or_right() -> None:
    model, optimizer, _ = attached()
    train(model, optimizer, 0, 6)
    part = copy.deepcopy(model[0])  # brings its own copy of the pool
    x, _ = batch(0)
    out = part(x).detach().clone()
    assert torch.equal(out, model[0](x))
    train(model, optimizer, 6, 10)
    assert torch.equal(part(x), out)


def test_two_models_in_one_process_do_not_see_each_other() -> None:
    def alone() -> dict[str, torch.Tensor]:
        model, optimizer, _ = attached()
        train(model, optimizer, 0, 10)
        return weights(model)

    one, first, _ = attached()
    two, second, _ = attached(methods.sparse_evolution(density=0.3), model=net(seed=3))
    for step in range(10):
        train(one, first, step, step + 1)
        train(two, second, step, step + 1)
    assert same(alone(), weights(one))


def test_one_optimizer_over_two_attached_models_is_refused_by_name() -> None:
    one, two = net(), net(seed=1)
    optimizer = torch.optim.AdamW([*one.parameters(), *two.parameters()])
    schedule = realloc.every(4, until=1.0, total=60)
    realloc.attach(one, optimizer, methods.rigl(density=0.2), schedule=schedule)
    keys = list(two.state_dict())
    with pytest.raises(realloc.errors.StateError, match=r"optimizer.*ModuleDict"):
        realloc.attach(two, optimizer, methods.rigl(density=0.2), schedule=schedule)
    assert list(two.state_dict()) == keys


def test_both_in_one_module_share_a_budget() -> None:
    both = nn.ModuleDict({"one": net(), "two": net(seed=1)})
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-2)
    handle = realloc.attach(both, optimizer, methods.rigl(density=0.2), schedule=realloc.every(4, until=1.0, total=60))
    for step in range(9):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(both["one"](x) + both["two"](x), y).backward()
        optimizer.step()
    assert handle.moves == 2
    intact(handle)


@pytest.mark.parametrize("method", [methods.topk(1), methods.lisa(1), methods.llrd(), methods.auto_rgn()])
def test_a_plain_copy_has_the_state_of_a_plain_model_whatever_is_attached(method: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    names = [*model.state_dict()]
    realloc.attach(model, torch.optim.AdamW(model.parameters()), method, schedule=realloc.every(2, total=4))
    assert [*realloc.export.dense(model).state_dict()] == names != [*model.state_dict()]
