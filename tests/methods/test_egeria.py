"""Egeria beside plain references: the measure by loops, the slopes by numpy, a whole run by copies of the model."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.errors import ReallocWarning
from realloc.methods.egeria import slopes_of
from realloc.methods.layers import Turn
from realloc.observe.plasticity import FIRST, MOST, dissimilarity
from realloc.rng import stream

LAYERS, EVERY = 5, 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(LAYERS):
        parts += [nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.0)]
    return nn.Sequential(*parts, nn.Linear(8, 3)).double()


def data(step: int, rows: int = 16) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(step % 7), dtype=torch.float64)


def start(steps: int, model: nn.Sequential | None = None, **more: Any) -> Any:
    model = net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    method = methods.egeria(**{"tolerance": 0.6, "tests": 2, "window": 2, **more})
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(EVERY, total=steps))
    return model, optimizer, handle


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
    optimizer.step()


def watched(handle: realloc.LayerHandle) -> Any:
    return handle._engine.sight.plasticity


# the measure -------------------------------------------------------------------------------------------------------


def by_loops(now: Tensor, then: Tensor) -> float:
    """Tung and Mori, eq. 1 to 4, one pair of examples at a time."""
    total, b = 0.0, len(now)
    alike = []
    for output in (now, then):
        rows = [output[i].flatten().tolist() for i in range(b)]
        gram = [[sum(p * q for p, q in zip(a, c, strict=True)) for c in rows] for a in rows]
        alike.append([[g / max(1e-12, math.sqrt(sum(h * h for h in row))) for g in row] for row in gram])
    for i in range(b):
        for j in range(b):
            total += (alike[0][i][j] - alike[1][i][j]) ** 2
    return total / b**2


@given(st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_dissimilarity_is_that_of_the_paper(rows: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    now, then = (torch.randn(rows, 3, 2, generator=draw, dtype=torch.float64) for _ in range(2))
    assert dissimilarity(now, then) == pytest.approx(by_loops(now, then), rel=1e-9)
    assert dissimilarity(now, now) == 0.0


@given(st.lists(st.floats(0, 10), max_size=12), st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_slopes_are_those_of_numpy(values: list[float], window: int) -> None:
    smooth = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    lines = [np.polyfit(range(window), smooth[i : i + window], 1)[0] for i in range(len(smooth) - window + 1)]
    assert slopes_of(values, window) == pytest.approx(lines, abs=1e-9)


# the rule ----------------------------------------------------------------------------------------------------------


def turn(values: list[float], on: tuple[int, ...] = (0, 1, 2), rate: float = 1.0, thaws: int = 0) -> Turn:
    return Turn(
        count=3, on=on, number=4, phase=0.5, draw=lambda n: stream(0, "x", "y", n), budget=1.0, cost=lambda on: 0.0,
        plasticity=tuple(values), rate=rate, thaws=thaws,
    )  # fmt: skip


LEVEL = [0.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]


def test_a_layer_freezes_once_it_was_level_for_so_many_tests() -> None:
    choose = methods.egeria(0.2, tests=2, window=2).choose
    assert slopes_of(LEVEL, 2)[-3:] == [0.5, 0.0, 0.0]
    assert choose(turn(LEVEL)) == (1, 2) and choose(turn(LEVEL[:-1])) == (0, 1, 2)
    assert methods.egeria(0.2, tests=3, window=2).choose(turn(LEVEL)) == (0, 1, 2)
    assert choose(turn(LEVEL, on=(1, 2))) == (2,)
    assert choose(turn(LEVEL, on=(2,))) == (2,)  # the highest layer stays
    assert choose(turn([0.0] * 9)) == (0, 1, 2)  # what never moved has not settled
    assert choose(turn([])) == (0, 1, 2)


@given(st.lists(st.floats(0, 1), max_size=10), st.integers(1, 5), st.integers(2, 4), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_nothing_freezes_before_there_are_tests_enough(
    values: list[float], tests: int, window: int, tolerance: float
) -> None:
    chosen = methods.egeria(tolerance, tests=tests, window=window).choose(turn(values))
    assert chosen in ((0, 1, 2), (1, 2))
    assert len(values) >= window + tests - 1 or chosen == (0, 1, 2)


def test_a_fallen_rate_lets_all_train_and_asks_for_half_the_tests() -> None:
    choose = methods.egeria(0.2, tests=3, window=2).choose
    assert choose(turn([], on=(2,), rate=0.1)) == (0, 1, 2)
    assert choose(turn([], on=(2,), rate=0.11)) == (2,)
    assert choose(turn(LEVEL, rate=0.01)) == (0, 1, 2)  # nothing is frozen: nothing thaws, and the line still rises
    assert choose(turn(LEVEL, thaws=1)) == (1, 2)  # two in place of three
    assert choose(turn(LEVEL[:-1], thaws=5)) == (1, 2)  # never fewer than one
    never = methods.egeria(0.2, tests=3, window=2, thaw=math.inf).choose
    assert never(turn([], on=(2,), rate=1e-9)) == (2,)


# the run -----------------------------------------------------------------------------------------------------------


def test_a_run_by_copies_of_the_whole_model() -> None:
    """The reference of the paper, a second model, exact and taken at each freeze, gives the same tests and freezes."""
    steps = 60
    model, optimizer, handle = start(steps, cache=None)
    second, lowest, account = copy.deepcopy(net()), 0, list[float]()
    freezes = 0
    for step in range(1, steps + 1):
        x = data(step)
        before = copy.deepcopy([p.detach() for p in model.parameters()])
        due = step % EVERY == 0
        if due:
            first = copy.deepcopy(net())
            with torch.no_grad():
                for mine, value in zip(first.parameters(), before, strict=True):
                    mine.copy_(value)
                end = 3 * lowest + 1
                account.append(by_loops(first[:end](x), second[:end](x)))
        step_on(model, optimizer, x)
        if not due:
            continue
        smooth = [np.mean(account[max(0, i - 1) : i + 1]) for i in range(len(account))]
        slopes = np.abs(np.diff(smooth))
        if len(slopes) >= 2 and (slopes[-2:] < 0.6 * slopes.max()).all() and lowest < LAYERS - 1:
            lowest, account, freezes = lowest + 1, [], freezes + 1
            with torch.no_grad():
                for theirs, mine in zip(second.parameters(), model.parameters(), strict=True):
                    theirs.copy_(mine)
        assert watched(handle).tests == pytest.approx(tuple(account), rel=1e-7, abs=1e-18), step
        assert list(handle.layers.values()) == [layer >= lowest for layer in range(LAYERS)], step
    assert freezes >= 2 and handle.moves == freezes


def drop_at(optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.param_groups[0]["lr"] = 0.3 if step < 40 else 0.02


def test_a_drop_of_the_rate_thaws_once_and_a_resume_goes_on_through_it() -> None:
    steps = 60
    model, optimizer, handle = start(steps, cache=None)
    states, seen = {}, []
    for step in range(1, steps + 1):
        drop_at(optimizer, step)
        step_on(model, optimizer, data(step))
        seen.append(sum(handle.layers.values()))
        states[step] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    assert min(seen[:41]) < LAYERS and seen[41] == LAYERS  # the first test after the drop is that of step 42
    assert watched(handle).thaws == 1 and watched(handle).rate == 1.0
    for stop in (37, 40, 42, 44):
        again, its, resumed = start(steps, cache=None)
        again.load_state_dict(states[stop][0])
        its.load_state_dict(states[stop][1])
        for step in range(stop + 1, steps + 1):
            drop_at(its, step)
            step_on(again, its, data(step))
        assert resumed.layers == handle.layers
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values())), stop


def test_the_account_keeps_the_newest_tests() -> None:
    model, optimizer, handle = start(6, cache=None)
    for step in range(1, 4):
        step_on(model, optimizer, data(step))
    buffer = model._buffers["realloc_layer_tests"]
    assert buffer is not None
    buffer[FIRST:] = torch.arange(MOST)
    buffer[FIRST - 1] = MOST
    watched(handle).value = 7.0
    watched(handle).add(0.3)
    assert watched(handle).tests == (*range(1, MOST), 7.0)


def test_a_batch_of_one_and_nan_freeze_nothing_and_say_so() -> None:
    for x, says in ((data(0, 1), "there was one"), (data(0) * float("nan"), "NaN or Inf")):
        model, optimizer, handle = start(30, cache=None)
        step_on(model, optimizer, data(1))
        step_on(model, optimizer, data(2))
        with pytest.warns(ReallocWarning, match=f"RA001.*{says}"):
            step_on(model, optimizer, x)
        assert all(handle.layers.values()) and watched(handle).tests == ()
    model, optimizer, handle = start(30, cache=None)
    with pytest.warns(ReallocWarning, match="RA001.*was not run"):
        for _ in range(3):
            optimizer.step()


def test_a_test_leaves_no_trace() -> None:
    """Modes, random numbers and gradients are as without it, with dropout on."""

    def noisy() -> nn.Sequential:
        model = net()
        for module in model:
            if isinstance(module, nn.Dropout):
                module.p = 0.3
        return model

    runs = []
    for attached in (True, False):
        model = noisy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        if attached:
            _, optimizer, handle = start(30, model, cache=None, tests=5)
        torch.manual_seed(1)
        for step in range(1, 10):
            step_on(model, optimizer, data(step))
        assert all(module.training for module in model.modules())
        runs.append([p.detach().clone() for p in model.parameters()])
    assert len(watched(handle).tests) == 3
    assert all(map(torch.equal, *runs))


def test_a_copied_model_brings_no_hook_of_ours() -> None:
    model, optimizer, handle = start(30, cache=None)
    other = copy.deepcopy(model)
    for step in range(1, 4):
        step_on(model, optimizer, data(step))
        other(data(step)).sum().backward()
    assert len(watched(handle).tests) == 1
    handle.detach()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("realloc_layer_link" in module.__dict__ for module in model.modules())


# models of transformers --------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"vocab_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16}
MODELS = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, intermediate_size=24)),
    "llama": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**SMALL, intermediate_size=24, pad_token_id=0)
    ),
    "gpt2": lambda: transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(vocab_size=40, n_layer=3, n_head=2, n_embd=16, pad_token_id=0)
    ),
    "deberta": lambda: transformers.DebertaV2ForSequenceClassification(
        transformers.DebertaV2Config(**SMALL, intermediate_size=24, relative_attention=True, pos_att_type=["p2c"])
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_freeze_and_are_read(name: str) -> None:
    torch.manual_seed(0)
    model: Any = MODELS[name]().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    method = methods.egeria(0.9, tests=1, window=2)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=30))
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randint(3, 40, (6, 7), generator=draw) for _ in range(2)]

    def train(steps: int) -> None:
        for step in range(steps):
            ids = batches[step % 2]
            optimizer.zero_grad()
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids[:, 0] % 2).loss.backward()
            optimizer.step()

    train(6)
    assert watched(handle).tests == (0.0, 0.0, 0.0)  # nothing has moved: layer and copy give the same to the bit
    assert all(handle.layers.values())
    optimizer.param_groups[0]["lr"] = 1e-2
    train(24)
    assert handle.moves >= 1 and not next(iter(handle.layers.values()))
    train(8)  # the last choice is made: two batches are computed at most, and read from then on
    assert handle.hits is not None and handle.hits >= 0.5
