"""A trial of other layers leaves no trace, and what it found can be taken over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layer_methods import net, train

import realloc
from realloc import methods
from realloc.errors import ConfigError, StateError
from realloc.record.events import EventLog, read

STARTS = st.sets(st.integers(0, 4), min_size=1)


def start(k: int = 2, **more: Any) -> tuple[Any, Any, realloc.LayerHandle]:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, realloc.attach(model, optimizer, methods.topk(k), **more)


def everything(model: Any, optimizer: Any) -> list[Any]:
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return [copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()), flags]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(max_examples=25, deadline=None)
@given(STARTS, st.integers(0, 4), st.integers(1, 3))
def test_a_trial_leaves_no_trace(layers: set[int], k: int, steps: int) -> None:
    model, optimizer, handle = start(k)
    straight, its_optimizer, _ = start(k)
    for one, its in ((model, optimizer), (straight, its_optimizer)):
        train(one, its, 5)
        its.zero_grad()
    before = everything(model, optimizer)
    with handle.trial(sorted(layers)) as trial:
        assert tuple(n for n, on in enumerate(handle.layers.values()) if on) == tuple(sorted(layers))
        train(model, optimizer, 5 + steps, first=5)
        changed = model.state_dict()
        assert any(not torch.equal(changed[name], value) for name, value in before[0].items())
    assert same(before, everything(model, optimizer)) and trial.end is not None
    train(model, optimizer, 9, first=5)
    train(straight, its_optimizer, 9, first=5)
    assert same(everything(model, optimizer), everything(straight, its_optimizer))


@pytest.mark.parametrize("layers", [[4], [0], [0, 4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("steps", [0, 2])
def test_gradients_that_were_pending_are_there_again(layers: list[int], steps: int) -> None:
    model, optimizer, handle = start()
    straight, its_optimizer, _ = start()
    for one, its in ((model, optimizer), (straight, its_optimizer)):
        train(one, its, 5)
        its.zero_grad()
        one(torch.ones(3, 8).double()).sum().backward()  # half of an accumulated step
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    frozen.grad = torch.full_like(frozen, 0.5)  # of a user who looks at a frozen layer
    before = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    assert sum(grad is not None for grad in before.values()) > 1
    with handle.trial(layers):
        assert all(p.grad is None for p in model.parameters())
        train(model, optimizer, 5 + steps, first=5)
    assert same(before, {name: p.grad for name, p in model.named_parameters()})
    frozen.grad = None
    for one, its in ((model, optimizer), (straight, its_optimizer)):
        one(torch.zeros(3, 8).double()).sum().backward()
        its.step()
    assert same(everything(model, optimizer), everything(straight, its_optimizer))


@settings(max_examples=25, deadline=None)
@given(STARTS)
def test_what_was_adopted_is_what_the_trial_ended_with(layers: set[int]) -> None:
    model, optimizer, handle = start()
    train(model, optimizer, 5)
    with handle.trial(sorted(layers)) as trial:
        train(model, optimizer, 8, first=5)
        names = set(trial.parameters)
        inside = {name: p.detach().clone() for name, p in model.named_parameters() if name in names}
        moments = {name: copy.deepcopy(optimizer.state[p]) for name, p in model.named_parameters() if p.requires_grad}
    trial.adopt()
    found = dict(model.named_parameters())
    assert same(inside, {name: found[name].detach() for name in inside})
    assert same(moments, {name: optimizer.state[found[name]] for name in moments})
    assert {n for n, on in enumerate(handle.layers.values()) if on} == layers
    stopped = [p for p in model.parameters() if not p.requires_grad]
    assert not any(p in optimizer.state for p in stopped)
    assert handle.moves == (0 if layers == {3, 4} else 1) and handle.held == handle.budget


def test_a_trial_that_waits_goes_through_a_checkpoint() -> None:
    ends = []
    for saved in (False, True):
        model, optimizer, handle = start()
        train(model, optimizer, 5)
        with handle.trial([1, 2, 3, 4]) as trial:
            train(model, optimizer, 8, first=5)
        if saved:
            state = copy.deepcopy(trial.state_dict())
            trial = handle.trial(state["layers"])
            trial.load_state_dict(state)
        train(model, optimizer, 7, first=5)
        trial.adopt()
        train(model, optimizer, 12, first=7)
        ends.append(everything(model, optimizer))
    assert same(*ends)


def test_layers_are_chosen_by_hand_and_it_is_recorded(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    model, optimizer, handle = start(record=log)
    train(model, optimizer, 3)
    handle.train(["0", 4])
    assert [name for name, on in handle.layers.items() if on] == ["0", "8"]
    log.sync()
    event = read(log.path).lines[-1]
    assert event["kind"] == "move" and event["step"] == 3 and event["parked"] == 0
    assert "2 -> 2 layers (-1 +1)" in handle.explain("0")
    kept = model[6].weight.detach().clone()
    train(model, optimizer, 6, first=3)
    assert torch.equal(model[6].weight, kept) and model[0].weight.grad is not None


def test_the_cache_is_there_again_after_a_trial() -> None:
    model, optimizer, handle = start(2)
    train(model, optimizer, 7)
    held, hits = handle.cached_bytes, handle.hits
    assert held and hits
    with handle.trial([1, 2, 3, 4]):
        train(model, optimizer, 9, first=7)
        assert handle.cached_bytes < held
    assert handle.cached_bytes == held and handle.hits == hits
    train(model, optimizer, 13, first=7)  # every batch was seen: all is read, nothing counts as changed
    assert handle.cached_bytes == held


@pytest.mark.parametrize(
    ("layers", "says"),
    [([], "layers are"), ("0", "layers are"), ([9], "no layer '9' among 5"), (["00"], "no layer '00'.*nearest: '0'")],
)
def test_layers_that_cannot_be(layers: Any, says: str) -> None:
    model, optimizer, handle = start()
    before = everything(model, optimizer)
    with pytest.raises(ConfigError, match=says):
        handle.train(layers)
    with pytest.raises(ConfigError, match=says):
        handle.trial(layers)
    assert same(before, everything(model, optimizer))


def test_trials_that_cannot_be() -> None:
    model, optimizer, handle = start()
    trial = handle.trial([4])
    with pytest.raises(StateError, match="has not ended"):
        trial.adopt()
    with trial, pytest.raises(StateError, match="runs already"), handle.trial([3]):
        pass
    with handle.trial([4]), pytest.raises(StateError, match="leave it first"):
        handle.train([3])
    with handle.trial([4]):
        with pytest.raises(StateError, match="leave it first"):
            handle.detach()
        assert handle.layers["8"] and not handle.layers["6"]  # it is attached, and the trial goes on
    handle.detach()
    with pytest.raises(StateError, match="detached"):
        handle.train([3])
    model = net()
    optimizer = torch.optim.AdamW(model[6:].parameters(), lr=1e-2)
    handle = realloc.attach(model, optimizer, methods.topk(1))
    with pytest.raises(ConfigError, match=r"optimizer does not hold '0\.weight'"):
        handle.train([0])
    moving = realloc.attach(
        again := net(), torch.optim.AdamW(again.parameters()), methods.lisa(1), schedule=realloc.every(4, total=8)
    )
    with pytest.raises(StateError, match="lisa chooses by itself"):
        moving.train([0])


def test_rows_that_train_cannot_be_tried_with() -> None:
    """Their ids would not be taken back; above them a trial is as anywhere."""
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    rows = realloc.attach(model, optimizer, methods.touched_rows(40).on("*word_embeddings"))
    handle = realloc.attach(model, optimizer, methods.full())
    words = torch.tensor([[5, 6], [7, 8]])

    def step() -> None:
        model(input_ids=words).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with pytest.raises(StateError, match="ids a trial cannot take back"), handle.trial([0, 2]):
        pass
    handle.train([2])
    with handle.trial([1, 2]):
        step()
    step()
    rows.detach()
    with handle.trial([0, 2]):
        step()
    step()


def test_a_trial_that_fails_is_taken_back_too() -> None:
    model, optimizer, handle = start()
    train(model, optimizer, 5)
    optimizer.zero_grad()
    before = everything(model, optimizer)
    with pytest.raises(ZeroDivisionError), handle.trial([0]):
        train(model, optimizer, 7, first=5)
        raise ZeroDivisionError
    assert same(before, everything(model, optimizer))
