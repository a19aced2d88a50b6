"""A budget of layers in microseconds: the table, what is charged, and what a resume goes on with."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import realloc
from realloc import methods
from realloc.allocate.layer_costs import CostTable
from realloc.errors import ConfigError, RecordError, StateError
from realloc.methods.layers import LayerMethod
from realloc.record.events import read

LAYERS = 4
TABLE = CostTable((5, 6, 7, 8), (4, 9, 3, 2), (10, 1, 12, 6))
costs = st.lists(st.tuples(*[st.integers(1, 10**6)] * 3), min_size=1, max_size=7)


def table_of(rows: list[tuple[int, int, int]]) -> CostTable:
    forward, inputs, weights = (tuple(row[part] for row in rows) for part in range(3))
    return CostTable(forward, inputs, weights)


def net(layers: int = LAYERS, width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(width, 2))


def start(method: LayerMethod, model: nn.Module | None = None, **more: Any) -> Any:
    model = net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return model, optimizer, realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=20), **more)


def train(model: nn.Module, optimizer: Any, steps: int, first: int = 0) -> None:
    for step in range(first, steps):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


# the ledger --------------------------------------------------------------------------------------------------------


@given(costs, st.data(), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_cost_is_that_of_running_the_step_by_hand(
    rows: list[tuple[int, int, int]], data: Any, below: bool, cached: bool
) -> None:
    on = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1))))
    total = 0
    for layer, (forward, inputs, weights) in enumerate(rows):
        flows = below or any(lower <= layer for lower in on)
        total += 0 if cached and not flows else forward
        total += inputs if flows else 0
        total += weights if layer in on else 0
    assert table_of(rows).cost(on, below=below, cached=cached) == total
    assert table_of(rows).full == sum(map(sum, rows))


@given(costs, st.floats(1e-6, 1.0))
@settings(max_examples=300, deadline=None)
def test_the_budget_is_the_largest_integer_that_the_share_lets_through(
    rows: list[tuple[int, int, int]], share: float
) -> None:
    """A method compares shares, the ledger integers: neither may let through what the other refuses."""
    table = table_of(rows)
    budget = table.budget(share)
    assert budget / table.full <= share < (budget + 1) / table.full


@given(
    rows=st.lists(st.tuples(*[st.integers(1, 99)] * 3), min_size=LAYERS, max_size=LAYERS), share=st.floats(0.2, 1.0),
    name=st.sampled_from(["random_layers", "layer_gradient", "greedy"]), seed=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_budget_is_exact_in_microseconds_after_every_step(
    rows: list[tuple[int, int, int]], share: float, name: str, seed: int
) -> None:
    table = table_of(rows)
    greedy = LayerMethod("greedy", _cheapest, moves=True, budget=share, cache=None)
    method = greedy if name == "greedy" else getattr(methods, name)(share)
    try:
        model, optimizer, handle = start(method.costing(table), seed=seed)
    except ConfigError as error:
        least = min(table.cost([layer], below=False, cached=False) for layer in range(LAYERS))
        assert "pays for no layer" in str(error) and least > table.budget(share)
        return
    for step in range(8):
        train(model, optimizer, step + 1, step)
        on = [layer for layer, trains in enumerate(handle.layers.values()) if trains]
        assert handle.held == table.cost(on, below=False, cached=False) <= handle.budget == table.budget(share)
        assert handle.held + handle.parked == handle.budget and isinstance(handle.held, int)


def _cheapest(turn: Any) -> tuple[int, ...]:
    """As many layers from the top as the share pays for, to the last microsecond."""
    on: tuple[int, ...] = ()
    for layer in reversed(range(turn.count)):
        wider = tuple(sorted((layer, *on)))
        on = wider if turn.cost(wider) <= turn.budget else on
    return on


def test_the_ledger_never_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs with one table, one of them a hundred times slower, charge and choose the same."""
    states = []
    for slow in (0.0, 0.002):
        model, optimizer, handle = start(methods.layer_gradient(0.6).costing(TABLE))
        model.register_forward_hook(lambda *_, slow=slow: time.sleep(slow))
        train(model, optimizer, 12)
        states.append(handle.state())
    assert states[0] == states[1] and states[0]["unit"] == "microseconds a step"
    assert states[0]["budget"] == TABLE.budget(0.6)


# the state and the record -------------------------------------------------------------------------------------------


def test_a_resume_reads_the_table_of_the_checkpoint(tmp_path: Path) -> None:
    other = CostTable((7,) * 4, (5,) * 4, (9,) * 4)  # as another machine would have timed
    whole, its, first = start(methods.layer_gradient(0.6).costing(TABLE), record=tmp_path / "a.jsonl")
    for stop in (1, 5, 8):
        model, optimizer, _ = start(methods.layer_gradient(0.6).costing(TABLE))
        train(model, optimizer, stop)
        states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        again, theirs, resumed = start(methods.layer_gradient(0.6).costing(other), record=tmp_path / f"{stop}.jsonl")
        again.load_state_dict(states[0])
        theirs.load_state_dict(states[1])
        train(again, theirs, 12, stop)
        if stop == 1:
            train(whole, its, 12)
        assert resumed.state() == first.state() and resumed.budget == TABLE.budget(0.6)
        assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))
        later = [line for line in read(tmp_path / f"{stop}.jsonl").lines if line["kind"] == "costs"]
        assert not later  # it is in the record of the first steps
    lines = read(tmp_path / "a.jsonl").lines
    assert [line["kind"] for line in lines].count("costs") == 1 and lines[0]["kind"] == "costs"
    assert lines[0]["layers"]["2"] == {"forward": 6, "inputs": 9, "weights": 1}
    assert all(line["budget"] == TABLE.budget(0.6) for line in lines[1:])
    assert all(line["held"] + line["parked"] == line["budget"] for line in lines[1:])


def test_a_state_of_another_currency_or_a_damaged_table_is_refused() -> None:
    timed, _, _ = start(methods.layer_gradient(0.5).costing(TABLE))
    counted, _, _ = start(methods.layer_gradient(0.5))
    with pytest.raises(RecordError, match=r"counts microseconds; attach with method\.costing"):
        counted.load_state_dict(timed.state_dict())
    with pytest.raises(RecordError, match=r"counts FLOPs; attach without method\.costing"):
        timed.load_state_dict(counted.state_dict(), strict=False)
    for broken in (torch.zeros(3, 4, dtype=torch.int64), torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 4)):
        with pytest.raises(RecordError, match="no cost table of 4 layers"):
            timed.load_state_dict(timed.state_dict() | {"realloc_layer_costs": broken})
    plain = net().state_dict()
    timed.load_state_dict(plain)  # a plain model says nothing of it


def test_detach_takes_the_table_off() -> None:
    model, _, handle = start(methods.layer_gradient(0.5).costing(TABLE))
    handle.detach()
    assert set(model.state_dict()) == set(net().state_dict())


def test_one_that_never_moves_is_charged_too() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = realloc.attach(model, optimizer, methods.topk(2, cache=None).costing(TABLE))
    assert handle.held == handle.budget == 5 + 6 + (7 + 3 + 12) + (8 + 2 + 6)
    assert "49 microseconds a step in the layers" in str(handle.start)
    assert "of 49 microseconds a step" in handle.summary()


# timing -------------------------------------------------------------------------------------------------------------


def test_a_wide_layer_costs_more_than_a_narrow_one() -> None:
    parts = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 900), nn.ReLU(), nn.Linear(900, 900), nn.ReLU()]
    table = realloc.cost_table(nn.Sequential(*parts, nn.Linear(900, 2)), torch.randn(64, 8))
    assert len(table) == 3 and table.unit == "microseconds a step"
    for part in (table.forward, table.inputs):
        assert part[2] > 4 * part[0] >= 4, table
    assert table.forward[2] + table.weights[2] > 4 * (table.forward[0] + table.weights[0])
    assert "where every layer trains" in str(table)


def test_timing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6), nn.ReLU(inplace=True),
                          nn.Linear(6, 2))  # fmt: skip
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(6)
    before = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    realloc.cost_table(model, torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(4), expected)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert flags == [p.requires_grad for p in model.parameters()] and not model[2].training and model[1].training
    assert torch.equal(model[0].bias.grad, torch.ones(6)) and model[3].weight.grad is None
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["mapping", "tuple"])
def test_models_of_transformers_are_timed(kind: str) -> None:
    config = transformers.LlamaConfig(
        vocab_size=40, num_hidden_layers=3, num_attention_heads=2, hidden_size=16, intermediate_size=24, pad_token_id=0
    )
    model = transformers.LlamaForSequenceClassification(config)
    ids = torch.randint(1, 40, (4, 6))
    batch = {"input_ids": ids, "labels": ids[:, 0] % 2} if kind == "mapping" else (ids,)
    table = realloc.cost_table(model, batch, repeats=2)
    assert len(table) == 3
    optimizer = torch.optim.AdamW(model.parameters())
    handle = realloc.attach(model, optimizer, methods.topk(2).costing(table))
    assert handle.held == sum(table.forward[1:]) + sum(table.inputs[1:]) + sum(table.weights[1:])  # the rest is read


def test_bad_input() -> None:
    model = net()
    with pytest.raises(ConfigError, match="the batch is a list"):
        realloc.cost_table(model, [torch.ones(2, 6)])
    with pytest.raises(ConfigError, match="repeats is 0"):
        realloc.cost_table(model, torch.ones(2, 6), repeats=0)
    with pytest.raises(ConfigError, match="has no blocks"):
        realloc.cost_table(nn.Linear(2, 2), torch.ones(2, 2))
    with pytest.raises(ConfigError, match=r"costing\(\) takes the table that realloc\.cost_table"):
        methods.layer_gradient(0.5).costing({"0": 3})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"costing\(\)"):
        methods.layer_gradient(0.5).costing(CostTable.of_sizes([1, 2]))
    with pytest.raises(ConfigError, match="cost table holds 0"):
        CostTable((1,), (0,), (1,))
    with pytest.raises(ConfigError, match=r"holds 1\.5"):
        CostTable((1,), (1.5,), (1,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="three costs for each layer"):
        CostTable((1,), (1, 2), (1,))
    with pytest.raises(ConfigError, match="of 4 layers, the model has 3"):
        start(methods.layer_gradient(0.5).costing(TABLE), net(3))
    with pytest.raises(ConfigError, match="pays for no layer"):
        start(methods.layer_gradient(0.3).costing(TABLE))
    attached, _, _ = start(methods.layer_gradient(0.6).costing(TABLE))
    with pytest.raises(StateError, match="before attach"):
        realloc.cost_table(attached, torch.ones(2, 6))


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[2](self.layers[0](x))  # type: ignore[no-any-return]


def test_a_layer_that_is_not_run_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'layers\.1' is not run on this batch"):
        realloc.cost_table(Skips(), torch.ones(2, 4))
