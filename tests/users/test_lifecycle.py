from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from toy import attached, batch, hooks, intact, loss_of, masks, net, same, train, weights

import realloc
from realloc import methods
from realloc.errors import ReallocWarning, StateError

KEYS = list(net().state_dict())
OPTIMIZERS = [
    (torch.optim.AdamW, {}), (torch.optim.AdamW, {"fused": True}), (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.Adam, {"amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.RMSprop, {}),
    (torch.optim.Adagrad, {}), (torch.optim.Adamax, {}), (torch.optim.NAdam, {}), (torch.optim.RAdam, {}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "settings"), OPTIMIZERS)
def test_attach_after_training_carries_the_moments_over(make: type, settings: dict[str, object]) -> None:
    """Static from step 5 on is the dense run whose weights and moments are masked at step 5 and after each step."""
    ends = []
    for sparse in (True, False):
        model = net().double()
        optimizer = make(model.parameters(), lr=1e-2, **settings)
        train(model, optimizer, 0, 5, dtype=torch.float64)
        if sparse:
            handle = realloc.attach(
                model, optimizer, methods.static(density=0.3), schedule=realloc.every(4, until=1.0, total=60)
            )
            held = masks(handle)
            train(model, optimizer, 5, 12, dtype=torch.float64)
            ends.append(weights(model))
            continue
        with torch.no_grad():
            for name, mask in held.items():
                model.get_parameter(name).mul_(mask)
            for step in range(5, 12):
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss_of(model, step, torch.float64).backward()
                optimizer.step()
                for name, mask in held.items():
                    model.get_parameter(name).mul_(mask)
        ends.append(weights(model))
    for name in ends[0]:
        assert torch.allclose(ends[0][name], ends[1][name], atol=1e-10), name


def test_detach_then_attach_again() -> None:
    model, optimizer, handle = attached()
    train(model, optimizer, 0, 6)
    shape = handle.mask("0").shape
    handle.detach()
    assert hooks(model) == 0 and list(model.state_dict()) == KEYS
    assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]
    assert model[0].weight.shape == shape and "realloc" not in str(optimizer.state_dict()["param_groups"])
    train(model, optimizer, 6, 8)
    second = realloc.attach(
        model, optimizer, methods.gse(density=0.1), schedule=realloc.every(4, until=1.0, total=60), seed=3
    )
    train(model, optimizer, 8, 16)
    assert second.moves == 2
    intact(second)
    second.detach()
    assert hooks(model) == 0 and list(model.state_dict()) == KEYS


def test_a_detached_handle_says_so() -> None:
    model, optimizer, handle = attached()
    train(model, optimizer, 0, 6)
    handle.detach()
    assert "detached" in repr(handle) and "detached" in handle._repr_html_()
    acts = (handle.summary, handle.detach, handle.compact, handle.restart_moments, lambda: handle.held,
            lambda: handle.mask("0"), lambda: handle.follow(model))  # fmt: skip
    for act in acts:
        with pytest.raises(StateError, match="detached"):
            act()


def test_keys_and_hooks_while_attached_are_counted() -> None:
    before = net()
    count, keys = hooks(before), list(before.state_dict())
    model, optimizer, handle = attached()
    assert 0 < hooks(model) - count <= 6  # all of them on the root module
    assert hooks(model) == sum(hooks(m) for m in [model]) and not any(hooks(m) for m in model.children())
    added = [k for k in model.state_dict() if k not in keys]
    assert added and all(k.startswith("realloc_") for k in added)
    pre, post = len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
    assert (pre, post) == (1, 1)
    handle.detach()
    assert hooks(model) == count and list(model.state_dict()) == keys
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_load_state_dict_pre_hooks


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_detach_leaves_no_hook_on_a_parameter(storage: str) -> None:
    model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage))
    train(model, optimizer, 0, 5)
    handle.detach()
    for parameter in model.parameters():
        assert not parameter._backward_hooks and not getattr(parameter, "_post_accumulate_grad_hooks", None)


def test_a_captured_list_is_warned_of_once_with_the_remedy() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    captured = list(model.parameters())
    realloc.attach(model, optimizer, methods.rigl(density=0.2), schedule=realloc.every(4, until=1.0, total=60))
    with pytest.warns(ReallocWarning, match=r"RA002.*0\.weight.*model\.parameters\(\) again") as caught:
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            torch.nn.utils.clip_grad_norm_(captured, 1.0)
            optimizer.step()
    assert len(caught) == 1


def test_no_false_alarm_where_nothing_was_captured() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    saved = model.state_dict()
    for step in range(3):  # the usual loop, whose names stay alive: loss, x, y
        x, y = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
    total = sum(p.numel() for p in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        realloc.attach(model, optimizer, methods.rigl(density=0.2), schedule=realloc.every(4, until=1.0, total=60))
        for step in range(3, 9):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
    assert total and saved


def test_a_list_taken_after_attach_clips() -> None:
    model, optimizer, _ = attached()
    captured = list(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            torch.nn.utils.clip_grad_norm_(captured, 1e-6)
            assert sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5 < 1e-5
            optimizer.step()


def test_prepare_then_attach_is_attach() -> None:
    one, first, a = attached()
    two = net()
    method = methods.rigl(density=0.2)
    plan = realloc.prepare(two, method)
    second = torch.optim.AdamW(two.parameters(), lr=1e-2)
    b = realloc.attach(two, second, method, schedule=realloc.every(4, until=1.0, total=60))
    assert plan.budget == a.budget == b.budget and same(masks(a), masks(b))
    train(one, first, 0, 9)
    train(two, second, 0, 9)
    assert same(weights(one), weights(two))


def test_groups_keep_their_rates_and_decay() -> None:
    model = net()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1, "lr": 1e-2},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0, "lr": 1e-3},
    ]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 1e-3], total_steps=60)
    handle = realloc.attach(model, optimizer, methods.rigl(density=0.2), schedule=realloc.every(4, until=1.0, total=60))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [len(g["params"]) for g in optimizer.param_groups] == [2, 3]
    for step in range(9):
        train(model, optimizer, step, step + 1)
        scheduler.step()
    assert handle.moves == 2 and len(optimizer.param_groups) == 2


def test_layers_in_two_groups_get_two_pools_and_two_rates() -> None:
    model = net()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2:].parameters()}], 0.1)
    handle = realloc.attach(
        model, optimizer, methods.static(density=0.2), schedule=realloc.every(4, until=1.0, total=60)
    )
    before = weights(model)
    train(model, optimizer, 0, 3)
    after = weights(model)
    assert torch.equal(before["0.weight"], after["0.weight"]) and not torch.equal(before["2.weight"], after["2.weight"])
    intact(handle)


def test_lbfgs_is_refused_packed_and_works_masked() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    method = methods.sparse_evolution(density=0.2).on("0", "2", storage="masked")
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, until=1.0, total=60))
    for _ in range(5):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, 0)
            loss.backward()
            return loss

        optimizer.step(closure)
        for name in handle.sites:
            assert not model.get_parameter(name)[~handle.mask(name)].any()
    assert handle.moves == 2 and handle.steps == 5
    intact(handle)
