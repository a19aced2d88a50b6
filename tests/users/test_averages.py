from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from toy import attached, batch, masks, net, train, weights

import realloc
from realloc import methods
from realloc.errors import ConfigError, StateError


def ema(decay: float) -> Callable[..., None]:
    return get_ema_multi_avg_fn(decay)


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_a_followed_average_is_the_average_of_the_dense_weights(storage: str) -> None:
    """By hand: the average of the dense weights, where what a move released or acquired starts again at zero."""
    model, optimizer, handle = attached(methods.rigl(density=0.2).on("*", storage=storage), every=3)
    average = AveragedModel(model, multi_avg_fn=ema(0.8))
    handle.follow(average)
    by_hand: dict[str, torch.Tensor] = {}
    before = masks(handle)

    def watch(step: int) -> None:
        nonlocal before
        now, held = weights(model), masks(handle)
        for name, mask in held.items():
            if by_hand:
                by_hand[name][~(before[name] & mask)] = 0.0
        before = held
        average.update_parameters(model)
        for name, value in now.items():
            by_hand[name] = value if name not in by_hand else 0.8 * by_hand[name] + 0.2 * value

    train(model, optimizer, 0, 20, watch)
    assert handle.moves > 4
    for name, value in weights(average).items():
        key = name.removeprefix("module.")
        assert torch.allclose(value, by_hand[key], atol=1e-6), name
    x, _ = batch(0)
    assert torch.isfinite(average(x)).all()


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_the_ages_of_young_units_follow_too(storage: str) -> None:
    model, optimizer, handle = attached(methods.smet(density=0.2).on("*", storage=storage), every=3)
    average = AveragedModel(model, multi_avg_fn=ema(0.8))
    handle.follow(average)
    train(model, optimizer, 0, 10, lambda step: average.update_parameters(model))
    ages = {name: buffer for name, buffer in model.named_buffers() if "born" in name}
    assert ages and any(bool((buffer > 0).any()) for buffer in ages.values())
    for name, buffer in ages.items():
        assert torch.equal(average.module.get_buffer(name), buffer), name


def test_an_average_that_missed_a_move_is_refused_each_time() -> None:
    model, optimizer, handle = attached(every=3)
    average = AveragedModel(model, multi_avg_fn=ema(0.8))
    train(model, optimizer, 0, 8, lambda step: average.update_parameters(model))
    assert handle.moves == 2
    x, _ = batch(0)
    for _ in range(2):  # once refused, refused for good
        with pytest.raises(StateError, match=r"follow\(copy\)"):
            average(x)
    with pytest.raises(StateError, match="follow"):
        average.state_dict()
    with pytest.raises(StateError, match="follow"):
        realloc.export.dense(average)
    with pytest.raises(StateError, match="placement"):
        handle.follow(average)


def test_an_average_is_refused_after_any_number_of_updates() -> None:
    """The check must not depend on how often buffers were written."""
    for count in range(1, 30):
        model, optimizer, _ = attached(every=3)
        average = AveragedModel(model, multi_avg_fn=ema(0.8))
        average.update_parameters(model)
        train(model, optimizer, 0, 3)
        for _ in range(count):
            average.update_parameters(model)
        with pytest.raises(StateError, match="follow"):
            average(batch(0)[0])


def test_an_average_without_a_move_needs_no_following() -> None:
    model, optimizer, _ = attached(methods.static(density=0.2))
    average = AveragedModel(model, multi_avg_fn=ema(0.5))
    train(model, optimizer, 0, 10, lambda step: average.update_parameters(model))
    assert torch.isfinite(average(batch(0)[0])).all()


def test_a_copy_that_already_missed_a_move_cannot_follow() -> None:
    model, optimizer, handle = attached(every=3)
    average = AveragedModel(model, multi_avg_fn=ema(0.8))
    train(model, optimizer, 0, 4)
    with pytest.raises(StateError, match="placement"):
        handle.follow(average)


def test_following_twice_is_following_once() -> None:
    ends = []
    for times in (1, 2):
        model, optimizer, handle = attached(every=3)
        average = AveragedModel(model, multi_avg_fn=ema(0.8))
        for _ in range(times):
            handle.follow(average)
        train(model, optimizer, 0, 7)
        assert handle.moves == 2
        ends.append(average(batch(0)[0]))
    assert torch.equal(*ends)


def test_an_average_of_the_integer_buffers_is_refused() -> None:
    model, optimizer, handle = attached(every=3)
    average = AveragedModel(model, multi_avg_fn=ema(0.8), use_buffers=True)
    with pytest.raises(ConfigError, match="use_buffers=False"):
        handle.follow(average)
    train(model, optimizer, 0, 7, lambda step: average.update_parameters(model))
    with pytest.raises(StateError, match="integer buffers"):
        average(batch(0)[0])


def test_a_follower_left_behind_by_a_load_is_named_before_it_is_mixed() -> None:
    model, optimizer, handle = attached(every=3)
    average = AveragedModel(model, multi_avg_fn=ema(0.8))
    handle.follow(average)
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    states = optimizer.state_dict()
    train(model, optimizer, 0, 4)
    model.load_state_dict(saved)
    optimizer.load_state_dict(states)
    with pytest.raises(StateError, match="averaged copy"):
        train(model, optimizer, 4, 5)


def test_a_followed_average_resumes_with_the_model() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, AveragedModel]:
        model, optimizer, handle = attached(every=3)
        average = AveragedModel(model, multi_avg_fn=ema(0.8))
        handle.follow(average)
        return model, optimizer, average

    model, optimizer, average = fresh()
    train(model, optimizer, 0, 8, lambda step: average.update_parameters(model))
    saved = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model, average)]
    states = torch.load(_through(optimizer.state_dict()), weights_only=True)
    train(model, optimizer, 8, 16, lambda step: average.update_parameters(model))
    again, other, twin = fresh()
    again.load_state_dict(saved[0])
    twin.load_state_dict(saved[1])
    other.load_state_dict(states)
    train(again, other, 8, 16, lambda step: twin.update_parameters(again))
    for (name, a), b in zip(weights(average).items(), weights(twin).values(), strict=True):
        assert torch.equal(a, b), name


def _through(state: object) -> object:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_compact_shortens_the_follower_too() -> None:
    model, optimizer, handle = attached(methods.granet(density=0.1, start=0.4), every=3, total=12)
    average = AveragedModel(model, multi_avg_fn=ema(0.0))
    handle.follow(average)
    train(model, optimizer, 0, 12)
    assert handle.parked > 0
    handle.compact()
    average.update_parameters(model)
    x, _ = batch(0)
    assert torch.allclose(average(x), model(x), atol=1e-6)
    assert handle.parked == 0
    train(model, optimizer, 12, 14)


def test_only_a_copy_of_this_model_can_follow() -> None:
    model, _, handle = attached()
    for other in (net(), model, attached(model=net((12, 8, 4)))[0]):
        with pytest.raises(ConfigError, match="copy"):
            handle.follow(other)
