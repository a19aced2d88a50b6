"""focus within a budget of parameters: it pays for what focus chose, for the highest of its layers, or for ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import realloc.finetune.focus as focus
import realloc.finetune.trials as trials
from realloc.allocate.prefix import depths_of
from realloc.errors import ConfigError
from realloc.finetune.config import FinetuneConfig, finetune_config
from realloc.finetune.preview import preview
from realloc.finetune.result import FinetuneResult
from realloc.finetune.run import finetune

HEAD = 99  # parameters of the head over 32 numbers and three classes
FREEZES_ONE, DROPS_ONE, TRAINS_ALL = (1.0, 0.5, 0.7, 0.5), (1.0, 0.5, 0.7, 0.9), (0.5, 0.6, 0.7, 0.8)


def probed(monkeypatch: pytest.MonkeyPatch, means: tuple[float, ...]) -> None:
    """Let the probes say so, and no clock."""
    noise = torch.rand(50, generator=torch.Generator().manual_seed(0)) / 100
    monkeypatch.setattr(focus, "_probed", lambda *_: depths_of([noise + mean for mean in means]))
    monkeypatch.setattr(focus, "measure", lambda *_: focus.Costs(100, 1.0, 1.0, 1.0))


def asked(tiny: Path, table: Path, **more: Any) -> FinetuneConfig:
    return finetune_config({"model": str(tiny), "data": str(table), "method": "focus", "epochs": 2} | more)


def run(tiny: Path, table: Path, folder: Path | None = None, **more: Any) -> FinetuneResult:
    return finetune(asked(tiny, table, **more), folder)


@pytest.fixture(scope="module")
def layer(tiny: Path) -> int:
    """Parameters of one layer."""
    return sum(p.numel() for p in transformers.AutoModel.from_pretrained(tiny).encoder.layer[0].parameters())


def test_a_budget_below_one_layer_goes_to_ranks_on_the_chosen_layers(
    tiny: Path, table: Path, layer: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probed(monkeypatch, FREEZES_ONE)
    most = HEAD + layer - 1
    told = preview(asked(tiny, table, budget=str(most)))
    assert list(told.layers.values()) == ["frozen", "trains", "trains"] and told.ledger is not None
    made = run(tiny, table, tmp_path / "out", budget=str(most))
    assert made.used == "lora" and made.ledger is not None
    assert made.trainable == made.ledger["budget"] == told.ledger["budget"] == most
    assert 0 <= made.ledger["parked"] < 64  # what the cheapest rank costs
    assert made.epochs == 2, "without a cache nothing pays for more epochs than were asked for"
    assert "the budget pays for no whole layer: LoRA ranks on 2 layers train instead for 2 epochs" in made.why
    ranks = json.loads((tmp_path / "out" / "model" / "adapter_config.json").read_text())
    named = [*ranks["rank_pattern"], *ranks["target_modules"]]
    assert any("layer.1." in name for name in named) and not any("layer.0." in name for name in named)


@pytest.mark.parametrize(("budget", "used"), [("5k", "lora"), ("30%", "topk"), ("10%", "lora")])
def test_budgets_in_words_serve_focus(
    budget: str, used: str, tiny: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(monkeypatch, FREEZES_ONE)
    whole = sum(p.numel() for p in transformers.AutoModel.from_pretrained(tiny).parameters()) + HEAD
    made = run(tiny, table, budget=budget)
    assert made.used == used and made.trainable <= {"5k": 5000, "30%": 0.3 * whole, "10%": 0.1 * whole}[budget]


def test_a_budget_is_a_ceiling_on_the_layers(
    tiny: Path, table: Path, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(monkeypatch, FREEZES_ONE)
    free, wide, exact, less = (
        run(tiny, table, **more)
        for more in ({}, {"budget": "90k"}, {"budget": f"{HEAD + 2 * layer}"}, {"budget": f"{HEAD + 2 * layer - 1}"})
    )
    assert [made.settings for made in (free, wide, exact, less)] == [{"k": 2}, {"k": 2}, {"k": 2}, {"k": 1}]
    assert free.held == wide.held == exact.held and free.lr == wide.lr and "budget" not in wide.why
    assert less.trainable == HEAD + layer and less.lr == pytest.approx(free.lr * 2**0.5)
    assert "the budget pays for 1 layer of these 2, the highest" in less.why


def test_dropped_layers_stay_dropped_under_a_budget(
    tiny: Path, table: Path, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(monkeypatch, DROPS_ONE)
    for budget, used in (("90k", "topk"), (str(HEAD + layer - 1), "lora")):
        told = preview(asked(tiny, table, budget=budget))
        assert told.used == used and list(told.layers.values()) == ["frozen", "trains", "dropped"]


def test_no_trial_trains_more_than_the_budget_pays_for(
    tiny: Path, table: Path, layer: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probed(monkeypatch, FREEZES_ONE)
    monkeypatch.setattr(trials, "LEAST", 2)
    for most, tried in ((HEAD + 2 * layer, False), (HEAD + 3 * layer, True)):
        made = run(tiny, table, budget=str(most), settings={"share": 1e-6, "trial": 0.2})
        assert ("one layer more was" in made.why) == tried and made.trainable <= most


def test_uniform_lora_of_focus_has_a_ceiling_too(tiny: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probed(monkeypatch, TRAINS_ALL)
    free, wide, narrow = (run(tiny, table, **more) for more in ({}, {"budget": "90k"}, {"budget": "5k"}))
    assert free.settings == wide.settings == {"rank": 8} and free.held == wide.held
    assert narrow.settings == {"budget": 5000 - HEAD} and "pays for less than LoRA of rank 8" in narrow.why


def test_a_budget_for_nothing_is_refused_before_focus_measures(
    tiny: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(focus, "choose", lambda *_: pytest.fail("measured first"))
    with pytest.raises(ConfigError, match="leaves 51 parameters beside the head, and the cheapest LoRA rank takes 64"):
        run(tiny, table, budget="150")


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_what_trains_above_the_layers_is_paid_from_the_budget(
    task: str, decoder: Path, table: Path, tmp_path: Path
) -> None:
    """The last norm of a Llama, and its output head, train with its top layer."""
    text = tmp_path / "ring.txt"
    text.write_text("w1 w2 w3 w4 " * 100)
    more = {"task": task, "data": str(text if task == "causal-lm" else table), "method": "topk", "tokens": 16}
    one = run(decoder, table, **more, settings={"k": 1}).trainable
    assert run(decoder, table, **more, budget=str(one)).trainable == one
    with pytest.raises(ConfigError, match=r"the top layer takes .* with what trains above it"):
        run(decoder, table, **more, budget=str(one - 1))
