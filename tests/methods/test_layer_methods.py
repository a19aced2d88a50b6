"""Every method that chooses layers keeps the promises; and each rule beside a plain reference."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import realloc
from kinds import LAYERS
from realloc import methods
from realloc.allocate.layer_costs import layer_flops
from realloc.allocate.prefix import depths_of
from realloc.errors import ConfigError, ReallocWarning, RecordError, StateError
from realloc.methods.layers import LayerMethod, Turn
from realloc.record.events import read
from realloc.rng import stream

STEPS = 24
DEPTHS = depths_of([torch.tensor([9.0 - d, 9.5 - d, 9.2 - d]) for d in range(6)])  # of five layers; the top knows most
SETTINGS: dict[str, dict[str, Any]] = {
    "focus": {"depths": DEPTHS},
    "autofreeze": {"percentile": 75}, "egeria": {"tolerance": 0.9, "tests": 1, "window": 2},
    "layer_gradient": {"budget": 0.7}, "random_layers": {"budget": 0.7},
}  # fmt: skip
MAKE = {name: partial(getattr(methods, name), **SETTINGS.get(name, {})) for name in LAYERS}


def net(layers: int = 5, width: int = 8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(width, 3)).double()


def start(method: LayerMethod, seed: int = 0, **more: Any) -> tuple[nn.Sequential, Any, realloc.LayerHandle]:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = realloc.attach(
        model, optimizer, method, schedule=realloc.every(4, until=1.0, total=STEPS), seed=seed, **more
    )
    return model, optimizer, handle


def train(model: nn.Module, optimizer: Any, steps: int, first: int = 0) -> None:
    for step in range(first, steps):
        draw = torch.Generator().manual_seed(step % 6)
        x = torch.randn(16, 8, generator=draw).double()
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def block(model: nn.Module, name: str) -> list[nn.Parameter]:
    return list(model.get_submodule(name).parameters())


# promises of all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_the_budget_holds_and_only_what_has_the_right_trains(name: str) -> None:
    model, optimizer, handle = start(MAKE[name]())
    head = list(model[-1].parameters())
    for step in range(STEPS):
        on = {layer for layer, trains in handle.layers.items() if trains}
        before = copy.deepcopy(list(model.parameters()))
        train(model, optimizer, step + 1, step)
        for layer in handle.layers:
            mine = {id(p) for p in block(model, layer)}
            moved = {id(p) for p, old in zip(model.parameters(), before, strict=True) if not torch.equal(p, old)}
            assert bool(mine & moved) == (layer in on), (step, layer)
        assert all(optimizer.state[p]["step"] == step + 1 for p in head)
        assert handle.held + handle.parked == handle.budget and handle.parked >= 0
        for layer, trains in handle.layers.items():
            for parameter in block(model, layer):
                assert parameter.requires_grad == trains or handle._engine._looking
                if not trains:
                    assert parameter not in optimizer.state
    assert handle.steps == STEPS
    assert (handle.moves > 0) == MAKE[name]().moves


@pytest.mark.parametrize("name", LAYERS)
def test_a_resume_is_bit_equal_wherever_it_stops(name: str) -> None:
    model, optimizer, handle = start(MAKE[name]())
    states = []
    for step in range(STEPS):
        train(model, optimizer, step + 1, step)
        states.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
    for stop in (3, 4, 9, 15):
        again, its, resumed = start(MAKE[name](), seed=99)
        again.load_state_dict(states[stop - 1][0])
        its.load_state_dict(states[stop - 1][1])
        train(again, its, STEPS, stop)
        assert resumed.layers == handle.layers
        for (key, mine), theirs in zip(again.state_dict().items(), states[-1][0].values(), strict=True):
            assert torch.equal(mine, theirs) or (key.endswith("norms") and mine.isnan().any()), (stop, key)


@pytest.mark.parametrize("name", LAYERS)
def test_equal_seeds_decide_alike_and_detach_leaves_nothing(name: str) -> None:
    runs = []
    for _ in range(2):
        model, optimizer, handle = start(MAKE[name]())
        plain = set(net().state_dict())
        train(model, optimizer, STEPS)
        runs.append(handle.state())
        handle.detach()
        assert set(model.state_dict()) == plain
        assert all(p.requires_grad for p in model.parameters())
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
        train(model, optimizer, STEPS + 1, STEPS)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", LAYERS)
def test_each_decision_is_recorded(name: str, tmp_path: Path) -> None:
    method = MAKE[name]()
    model, optimizer, handle = start(method, record=tmp_path / "events.jsonl")
    train(model, optimizer, STEPS)
    lines = read(tmp_path / "events.jsonl").lines
    assert [line["step"] for line in lines] == ([4, 8, 12, 16, 20, 24] if method.moves else [])
    assert all(line["held"] + line["parked"] == line["budget"] for line in lines)
    assert sum(line["kind"] == "move" for line in lines) == handle.moves
    name = next(iter(handle.layers))
    assert name in handle.explain(name) and "trains" in handle.summary()


# budget ------------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8), data=st.data(), below=st.booleans(),
    cached=st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_the_cost_is_that_of_running_the_step_by_hand(sizes: list[int], data: Any, below: bool, cached: bool) -> None:
    on = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1))))
    total = 0
    for layer, size in enumerate(sizes):
        flows = below or any(lower <= layer for lower in on)
        total += 0 if cached and not flows else size  # forward
        total += size if flows else 0  # gradient of the input
        total += size if layer in on else 0  # gradient of the weights
    assert layer_flops(sizes, on, below=below, cached=cached) == 2 * total


def turn(count: int, budget: float, gradient: tuple[float, ...] | None, number: int = 1) -> Turn:
    full = layer_flops([1] * count, range(count), below=True, cached=False)
    return Turn(
        count=count, on=(), number=number, phase=0.5, draw=lambda n: stream(0, "layers", "x", n), budget=budget,
        cost=lambda on: layer_flops([1] * count, on, below=False, cached=False) / full, gradient=gradient,
    )  # fmt: skip


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=7), st.floats(0.34, 1.0))
@settings(max_examples=60, deadline=None)
def test_layer_gradient_finds_the_best_set_of_equal_layers(gains: list[float], budget: float) -> None:
    """Against every set there is."""
    seen = turn(len(gains), budget, tuple(gains))
    chosen = methods.layer_gradient(budget).choose(seen)
    sets = [tuple(i for i in range(len(gains)) if mask >> i & 1) for mask in range(1 << len(gains))]
    best = max(sum(gains[i] for i in on) for on in sets if seen.cost(on) <= budget)
    assert sum(gains[i] for i in chosen) == pytest.approx(best)
    assert seen.cost(chosen) <= budget


@given(st.integers(1, 9), st.floats(0.05, 1.0), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_random_layers_never_pass_the_budget(count: int, budget: float, number: int) -> None:
    seen = turn(count, budget, None, number)
    chosen = methods.random_layers(budget).choose(seen)
    assert seen.cost(chosen) <= budget or not chosen


# rules -------------------------------------------------------------------------------------------------------------


def test_badam_gives_each_layer_one_turn_a_round() -> None:
    seen = [methods.badam().choose(turn(5, 1.0, None, n)) for n in range(10)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [(i,) for i in range(5)]
    assert [methods.badam("descending").choose(turn(3, 1.0, None, n))[0] for n in range(4)] == [2, 1, 0, 2]


def test_lisa_draws_without_replacement() -> None:
    seen = {methods.lisa(3).choose(turn(5, 1.0, None, n)) for n in range(40)}
    assert all(len(set(on)) == 3 for on in seen) and len(seen) > 5


def test_lisa_can_keep_the_moments_as_the_papers_code_does() -> None:
    kept, optimizer, handle = start(methods.lisa(2, state="keep"))
    train(kept, optimizer, STEPS)
    dropped, other, flat = start(methods.lisa(2))
    train(dropped, other, STEPS)
    assert handle.moments_bytes > flat.moments_bytes


@pytest.mark.parametrize("percentile", [50, 99])
def test_autofreeze_by_hand(percentile: float) -> None:
    """The norms of summed gradients, every 16th weight, over two intervals."""
    model, optimizer, handle = start(methods.autofreeze(percentile))
    sums: list[list[torch.Tensor]] = []
    for step in range(8):
        if step % 4 == 0:
            sums.append([torch.zeros(4 + 1, dtype=torch.float64) for _ in handle.layers])
        train(model, optimizer, step + 1, step)
        for total, layer in zip(sums[-1], handle.layers, strict=True):
            weight, bias = block(model, layer)
            if weight.grad is not None:
                total += torch.cat([weight.grad.flatten()[::16], bias.grad.flatten()[::16]])
    first, second = ([float(part.abs().sum()) for part in parts] for parts in sums)
    eta = [abs(b - a) / a for a, b in zip(first, second, strict=True)]
    line = np.percentile(eta, percentile)
    lowest = next(i for i, value in enumerate(eta) if value >= line)
    assert list(handle.layers.values()) == [i >= lowest for i in range(5)]
    assert lowest > 0 or percentile == 50


def test_a_layer_that_comes_back_starts_with_fresh_moments() -> None:
    model, optimizer, _ = start(methods.badam("ascending"))
    train(model, optimizer, 21)
    assert [int(optimizer.state[p]["step"]) for p in block(model, "0")] == [1, 1]


# bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: methods.topk(-1), "k is -1"), (lambda: methods.topk(True), "k is True"),
        (lambda: methods.topk(2, cache="1GB"), "realloc.Cache"), (lambda: methods.lisa(0), "layers is 0"),
        (lambda: methods.lisa(2, state="lose"), "'drop' or 'keep'"), (lambda: methods.badam("up"), "order is 'up'"),
        (lambda: methods.autofreeze(100), "percentile is 100"), (lambda: methods.layer_gradient(0), "budget is 0"),
        (lambda: methods.random_layers(1.5), "budget is 1.5"), (lambda: realloc.Cache(limit="much"), "limit is 'much'"),
        (lambda: realloc.Cache(dtype="int8"), "dtype is 'int8'"), (lambda: realloc.Cache(epoch=0), "epoch is 0"),
        (lambda: realloc.Cache(compute="int4"), "compute is 'int4'"),
        (lambda: methods.topk(1).on(prefix_dropout="maybe"), "prefix_dropout is 'maybe'"),
        (lambda: methods.egeria(0), "tolerance is 0"), (lambda: methods.egeria(1.0), "tolerance is 1.0"),
        (lambda: methods.egeria(tests=0), "tests is 0"), (lambda: methods.egeria(window=1), "window is 1"),
        (lambda: methods.egeria(thaw=1), "thaw is 1"), (lambda: methods.egeria(thaw="10"), "thaw is '10'"),
    ],
)  # fmt: skip
def test_bad_settings(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_a_schedule_is_needed_only_where_layers_are_chosen_again() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="schedule"):
        realloc.attach(model, optimizer, methods.lisa(2))
    realloc.attach(model, optimizer, methods.topk(2))
    with pytest.raises(StateError, match="attached already"):
        realloc.attach(model, optimizer, methods.topk(2))
    with pytest.raises(ConfigError, match="attach"):
        realloc.prepare(net(), methods.topk(2))


@pytest.mark.parametrize("first", ["layers", "weights"])
@pytest.mark.parametrize("second", ["layers", "weights"])
def test_one_optimizer_serves_one_attached_model(first: str, second: str) -> None:
    """Steps of one optimizer over two attached models would be counted by both."""
    models = net(), net(seed=1)
    optimizer = torch.optim.AdamW([p for model in models for p in model.parameters()])
    schedule = realloc.every(4, total=20)
    kinds = {"layers": methods.badam(), "weights": methods.rigl(0.5)}
    with pytest.raises(ConfigError, match="pays for no layer"):
        realloc.attach(models[0], optimizer, methods.random_layers(0.1), schedule=schedule)  # takes nothing
    handle = realloc.attach(models[0], optimizer, kinds[first], schedule=schedule)
    with pytest.raises(StateError, match="serves an attached model already"):
        realloc.attach(models[1], optimizer, kinds[second], schedule=schedule)
    assert set(models[1].state_dict()) == set(net().state_dict())
    handle.detach()
    realloc.attach(models[1], optimizer, kinds[second], schedule=schedule)


def test_an_optimizer_that_lacks_a_layer_is_refused() -> None:
    """Made after a freeze, it would train nothing there, silently."""
    model = net()
    optimizer = torch.optim.AdamW(model[4:].parameters())
    with pytest.raises(ConfigError, match=r"does not hold '0\.weight'.*before anything is frozen"):
        realloc.attach(model, optimizer, methods.badam(), schedule=realloc.every(4, total=20))
    realloc.attach(model, optimizer, methods.topk(2))
    model = net()
    model[8].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"'8' is frozen"):
        realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.topk(2))
    model = net()
    headless = torch.optim.AdamW(model[:9].parameters())
    for method, schedule in ((methods.topk(1), None), (methods.badam(), realloc.every(4, total=20))):
        with pytest.raises(
            ConfigError, match=r"does not hold '10\.weight', nor .*above the layers.*requires_grad_\(False\)"
        ):
            realloc.attach(model, headless, method, schedule=schedule)
    assert not any(key.startswith("realloc") for key in model.state_dict())
    model[10].requires_grad_(False)
    realloc.attach(model, headless, methods.topk(1)).detach()
    model[10].weight.requires_grad_(True)
    realloc.attach(model, torch.optim.AdamW([*model[:9].parameters(), model[10].weight]), methods.topk(1)).detach()
    stranger = torch.optim.AdamW(net().parameters())
    with pytest.raises(ConfigError, match="no parameter of this model"):
        realloc.attach(net(), stranger, methods.topk(0))


@pytest.mark.parametrize("make", [methods.layer_gradient, methods.random_layers])
def test_a_budget_that_pays_for_no_layer_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"0\.4.*pays for no layer.*0\.47"):
        start(make(0.4))


def test_a_model_without_layers_is_refused() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(ConfigError, match="has no blocks"):
        realloc.attach(model, torch.optim.SGD(model.parameters()), methods.topk(1))


def test_a_method_that_breaks_its_budget_is_named() -> None:
    greedy = LayerMethod("greedy", lambda turn: tuple(range(turn.count)), moves=True, budget=0.5)
    with pytest.raises(StateError, match=r"greedy chose.*the budget is"):
        start(greedy)
    wild = LayerMethod("wild", lambda turn: (3, 1), moves=True)
    with pytest.raises(StateError, match="sorted numbers"):
        start(wild)


def test_nothing_measured_moves_nothing_and_says_so() -> None:
    model, optimizer, handle = start(methods.layer_gradient(0.5))
    before = handle.layers
    with pytest.warns(ReallocWarning, match="RA001.*nothing was measured"):
        for _ in range(4):
            optimizer.zero_grad()
            optimizer.step()
    train(model, optimizer, 7, 4)
    assert handle.layers == before and handle.steps == 7


def test_nan_moves_nothing() -> None:
    model, optimizer, handle = start(methods.layer_gradient(0.5))
    train(model, optimizer, 3)
    before = handle.layers
    loss = model(torch.full((2, 8), float("nan")).double()).sum()
    loss.backward()
    with pytest.warns(ReallocWarning, match="NaN"):
        optimizer.step()
    assert handle.layers == before


def test_a_foreign_state_is_refused() -> None:
    model, _, _ = start(methods.topk(2))
    other = net(layers=3)
    realloc.attach(other, torch.optim.SGD(other.parameters()), methods.topk(2))
    with pytest.raises(RecordError, match="realloc_layers"):
        model.load_state_dict(other.state_dict(), strict=False)


@pytest.mark.parametrize("make", [methods.autofreeze, methods.egeria])
def test_a_plan_says_of_what_freezes_later_that_its_dropout_goes_off(make: Any) -> None:
    *_, handle = start(make())
    assert any("freezes later" in note and "dropout off" in note for note in handle.start.notes)
    *_, handle = start(make().on(prefix_dropout="keep"))
    assert any("keeps its dropout" in note for note in handle.start.notes)
    *_, handle = start(methods.badam())
    assert not any("later" in note for note in handle.start.notes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize")
def test_a_quantised_model_is_called_so() -> None:
    model = torch.ao.quantization.quantize_dynamic(net().float(), {nn.Linear}, dtype=torch.qint8)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(ConfigError, match=r"'0' is a Linear, quantised: load the model unquantised"):
        realloc.attach(model, optimizer, methods.topk(1))
    with pytest.raises(ConfigError, match=r"'0' is a Linear, quantised: load the model unquantised"):
        realloc.prepare(model, methods.lora(2))
