from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from toy import attached, batch, intact, loss_of, masks, net, same, train, weights

import realloc
from realloc import methods
from realloc.errors import ReallocWarning

STORAGES = ["packed", "masked"]


@pytest.mark.parametrize("storage", STORAGES)
def test_accumulated_micro_batches_decide_as_one_batch(storage: str) -> None:
    method = methods.rigl(density=0.2).on("*", storage=storage)

    def run(parts: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        model, optimizer, handle = attached(method, model=net().double())
        for step in range(9):
            optimizer.zero_grad()
            x, y = batch(step, dtype=torch.float64)
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(a), b) / parts).backward()
            optimizer.step()
        assert (handle.steps, handle.moves) == (9, 2)
        return masks(handle), weights(model)

    (one, a), (four, b) = run(1), run(4)
    assert same(one, four)
    assert all(torch.allclose(a[k], b[k], atol=1e-10) for k in a)


@pytest.mark.parametrize("storage", STORAGES)
def test_clipping_sees_the_norm_of_the_masked_dense_model(storage: str) -> None:
    model, _, handle = attached(methods.rigl(density=0.2).on("*", storage=storage))
    dense, held = realloc.export.dense(model), masks(handle)
    loss_of(model, 0).backward()
    loss_of(dense, 0).backward()
    for name, parameter in dense.named_parameters():
        if name in held:
            parameter.grad *= held[name]
    mine = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    wanted = torch.nn.utils.clip_grad_norm_(dense.parameters(), 1e-3)
    assert torch.allclose(mine, wanted, rtol=1e-5)
    total = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    assert total == pytest.approx(1e-3, rel=1e-2)


def test_zero_grad_that_keeps_tensors() -> None:
    def run(to_none: bool) -> dict[str, torch.Tensor]:
        model, optimizer, handle = attached()
        for step in range(9):
            optimizer.zero_grad(set_to_none=to_none)
            loss_of(model, step).backward()
            optimizer.step()
        assert handle.moves == 2
        return weights(model)

    assert same(run(True), run(False))


def test_model_zero_grad_works_too() -> None:
    model, optimizer, handle = attached()
    for step in range(5):
        model.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    assert handle.moves == 1 and all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_closure_that_holds_the_whole_step() -> None:
    """As Lightning does it: zero_grad, forward and backward inside the closure."""
    model, optimizer, handle = attached()
    for step in range(9):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        value = optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
        assert torch.is_tensor(value) and value.item() > 0
    straight, other, second = attached()
    train(straight, other, 0, 9)
    assert same(weights(model), weights(straight)) and handle.moves == second.moves == 2


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_moves_nothing_and_warns_once(bad: float, storage: str) -> None:
    model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage))
    train(model, optimizer, 0, 3)
    before = masks(handle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3, 13):  # three due steps
            optimizer.zero_grad()
            (loss_of(model, step) * bad).backward()
            optimizer.step()
    told = [w for w in caught if isinstance(w.message, ReallocWarning)]
    assert [w.message.code for w in told] == ["RA001"] and "NaN or Inf" in str(told[0].message)
    assert same(before, masks(handle)) and handle.moves == 0
    intact(handle)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_batch_of_no_rows(storage: str) -> None:
    model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage))
    train(model, optimizer, 0, 3)
    before, codes = masks(handle), []
    for _ in range(2):
        optimizer.zero_grad()
        out = model(torch.zeros(0, 12))
        assert out.shape == (0, 4)
        out.sum().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        codes += [w.message.code for w in caught if isinstance(w.message, ReallocWarning)]
    if storage == "packed":
        assert codes == ["RA001"] and handle.moves == 0 and same(before, masks(handle))
    intact(handle)
    train(model, optimizer, 5, 8)
    assert handle.moves >= 1
    assert all(torch.isfinite(w).all() for w in weights(model).values())


def test_a_batch_of_no_rows_in_mixed_storage() -> None:
    """A masked site cannot tell that there were none; the packed one beside it can."""
    model = net()
    method = methods.rigl(density=0.2).on("*", storage="auto")
    model.append(nn.Unflatten(1, (1, 4))).append(nn.Conv1d(1, 2, 3)).append(nn.Flatten())
    model, optimizer, handle = attached(method, model=model)
    assert {site.storage for site in handle.sites.values()} == {"packed", "masked"}
    before = masks(handle)
    with pytest.warns(ReallocWarning, match="no rows"):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.zeros(0, 12)).sum().backward()
            optimizer.step()
    assert same(before, masks(handle)) and handle.moves == 0
    intact(handle)


def test_another_model_trained_is_said_loudly() -> None:
    _, optimizer, handle = attached()
    stranger = net()
    with pytest.warns(ReallocWarning, match=r"RA001.*is this the model you train"):
        train(stranger, optimizer, 0, 5)
    assert handle.moves == 0


def test_a_forward_without_backward_is_no_measurement() -> None:
    model, optimizer, handle = attached()
    with pytest.warns(ReallocWarning, match="RA001"):
        for step in range(5):
            optimizer.zero_grad()
            model(batch(step)[0])
            optimizer.step()
    assert handle.moves == 0


def test_nothing_ever_moved_is_said_at_the_last_due_step() -> None:
    model, optimizer, handle = attached(methods.rigl(density=0.02, drop=0.01), total=9)
    with pytest.warns(ReallocWarning, match=r"RA003.*drop fraction"):
        train(model, optimizer, 0, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle.summary()
        handle.detach()  # said once


def test_a_step_without_gradients_changes_nothing() -> None:
    model, optimizer, handle = attached(weight_decay=0.5)
    train(model, optimizer, 0, 2)
    before = weights(model)
    optimizer.zero_grad()
    optimizer.step()
    assert same(before, weights(model))
    intact(handle)


def test_an_input_buffer_filled_anew_before_the_step_is_noticed() -> None:
    """A loader that reuses one tensor: what was captured is no longer what the backward saw."""
    model, optimizer, handle = attached()
    x = torch.empty(16, 12)
    with pytest.warns(ReallocWarning, match=r"RA001.*written"):
        for step in range(5):
            data, y = batch(step)
            x.copy_(data)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            x.copy_(batch(step + 1)[0])  # prefetch
            optimizer.step()
    assert handle.moves == 0
    intact(handle)
