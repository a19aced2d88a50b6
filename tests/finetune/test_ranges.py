"""A setting out of its range is refused by name, and before the weights load wherever the model is not asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import realloc
import realloc.finetune.arms.table as arms
import realloc.finetune.weights as weights
from realloc import methods
from realloc.errors import ConfigError
from realloc.finetune.arms.ranges import NUMBERS, WORDS
from realloc.finetune.config import finetune_config
from realloc.finetune.preview import preview
from realloc.finetune.run import finetune

KNOWN = {name: kind.settings for name, kind in arms.KINDS.items()} | {arms.FOCUS: arms.check(arms.FOCUS, {})}
GRID = [(name, key, default) for name, settings in KNOWN.items() for key, default in settings.items()]


@pytest.mark.parametrize(("name", "key", "default"), GRID)
def test_every_setting_has_a_range(name: str, key: str, default: Any) -> None:
    """One that has none fails here; its default lies inside, and something of its kind lies outside."""
    if isinstance(default, bool):
        return
    arms.check(name, {key: default})
    bad: list[Any] = ["zigzag"] if isinstance(default, str) else [-1]
    if isinstance(default, float):
        bad += [1e9, float("nan"), float("inf")]
    for value in bad:
        with pytest.raises(ConfigError, match=rf"setting '{key}' of '{name}' is '?{value}'?; take "):
            arms.check(name, {key: value})
    assert key in (WORDS if isinstance(default, str) else NUMBERS)


def test_a_number_of_any_length_is_compared() -> None:
    with pytest.raises(ConfigError, match=r"setting 'k' of 'topk' is -1000"):
        arms.check("topk", {"k": -(10**4000)})
    assert arms.check("topk", {"k": 10**4000})["k"] == 10**4000  # the model says how many it has


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("focus", {"share": -1}, "setting 'share' of 'focus' is -1; take a number above 0, at most 1"),
        ("focus", {"trial": 0.5}, "setting 'trial' of 'focus' is 0.5; take a number from 0, at most 0.25"),
        ("topk", {"k": -1}, "take a number from 0"),
        ("autofreeze", {"percentile": 100}, "take a number from 0, below 100"),
        ("badam", {"order": "asc"}, "take random, ascending, descending; nearest: 'ascending'"),
        ("egeria", {"tolerance": 1.0}, "take a number above 0, below 1"),
    ],
)
def test_what_a_range_refuses_before_the_weights_load(
    method: str, settings: dict[str, Any], says: str, tiny: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "load", lambda *_: pytest.fail("the weights were loaded"))
    with pytest.raises(ConfigError, match=says):
        finetune(finetune_config({"model": str(tiny), "data": str(table), "method": method, "settings": settings}))


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("topk", {"k": 99}, "k is 99 and the model has 3 layers; take 3 or fewer"),
        ("lisa", {"layers": 9}, "layers is 9 and the model has 3 layers; take 3 or fewer"),
        *(
            (name, {"rank": rank}, f"rank is {rank:,} and no layer has so many: the most, 32, has .*; .* from 1 to 32")
            for name, rank in (("lora", 99_999_999_999), ("peft_lora", 33), ("gora", 33), ("peft_adalora", 40))
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused(
    method: str, settings: dict[str, Any], says: str, tiny: Path, table: Path, tmp_path: Path
) -> None:
    asked = finetune_config({"model": str(tiny), "data": str(table), "method": method, "settings": settings})
    with pytest.raises(ConfigError, match=says):
        finetune(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


CAPPED = ("adalora", "eva", "gora", "para", "random_ranks", "rank_gradient")


@pytest.mark.filterwarnings("ignore:.RA003")
@pytest.mark.parametrize("name", CAPPED)
@pytest.mark.parametrize("budget", [None, "6k"])
def test_no_layer_is_saved_with_more_ranks_than_the_cap(
    name: str, budget: str | None, tiny: Path, table: Path, tmp_path: Path
) -> None:
    """6k are 4.7 ranks a layer, beside the head."""
    ranks = {} if budget else {"rank": 4}
    asked = {"model": str(tiny), "data": str(table), "method": name, "budget": budget, "epochs": 1}
    config = finetune_config(asked | {"settings": {**ranks, "cap": 5}})
    told, found = preview(config), finetune(config, tmp_path / "out")
    assert told.settings == found.settings and found.settings["cap"] == 5
    adapter = json.loads((tmp_path / "out" / "model" / "adapter_config.json").read_text())
    assert max([adapter["r"], *adapter["rank_pattern"].values()]) <= 5
    assert told.ledger is not None and found.ledger is not None and told.ledger["budget"] == found.ledger["budget"]


@pytest.mark.parametrize(
    ("method", "settings", "budget", "says"),
    [
        ("random_ranks", {"cap": 4}, None, "cap=4 is below rank=8; raise cap"),
        ("adalora", {"cap": 8}, None, "cap=8 leaves adalora nothing to cut: with at most 8 ranks a layer"),
        ("para", {"cap": 2}, "9k", "with at most 2 ranks each hold .*; raise cap, .* or lower the budget"),
        ("lora", {"cap": 8}, None, "setting 'cap' is unknown: 'lora' takes rank"),
    ],
)
def test_a_cap_that_cannot_be(
    method: str, settings: dict[str, Any], budget: str | None, says: str, tiny: Path, table: Path
) -> None:
    asked = {"model": str(tiny), "data": str(table), "method": method, "settings": settings, "budget": budget}
    with pytest.raises(ConfigError, match=says):
        finetune(finetune_config(asked))


def test_layers_with_fewer_ranks_are_told_of(table: Path, tiny: Path, tmp_path: Path) -> None:
    """Keys and values of grouped heads are narrower than the rest: they hold all that they have."""
    config = transformers.LlamaConfig(
        vocab_size=84, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
        intermediate_size=48, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaModel(config).save_pretrained(tmp_path / "m")
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "m")
    asked = {"model": str(tmp_path / "m"), "data": str(table), "method": "lora", "epochs": 1}
    wide = finetune(finetune_config(asked | {"settings": {"rank": 16}}))
    assert wide.why == "4 of 14 linear layers have fewer than 16 ranks and hold all of theirs, 8"
    held = 2 * (16 * (2 * (32 + 32) + 3 * (32 + 48)) + 8 * 2 * (32 + 8))
    assert wide.ledger is not None and wide.ledger["held"] == held
    assert finetune(finetune_config(asked | {"settings": {"rank": 8}})).why == ""


# the same, of the library ---------------------------------------------------------------------------------------


def stack(layers: int = 3) -> torch.nn.Module:
    blocks = [torch.nn.Linear(4, 4) for _ in range(layers)]
    return torch.nn.Sequential(*blocks, torch.nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (methods.topk(4, cache=None), "k is 4 and the model has 3 layers; take 3 or fewer"),
        (methods.lisa(4), "layers is 4 and the model has 3 layers"),
    ],
)
def test_more_layers_than_there_are_change_nothing(method: Any, says: str) -> None:
    model = stack()
    names, optimizer = list(model.state_dict()), torch.optim.AdamW(model.parameters())
    schedule = realloc.every(1, total=4) if method.moves else None
    with pytest.raises(ConfigError, match=says):
        realloc.attach(model, optimizer, method, schedule=schedule)
    assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    handle = realloc.attach(model, optimizer, methods.topk(3, cache=None))
    assert all(handle.layers.values())


def test_a_rank_that_no_layer_has() -> None:
    model = stack()
    with pytest.raises(ConfigError, match=r"rank is 5 and no layer has so many: the most, 4, has 2\.weight; take a"):
        realloc.prepare(model, methods.lora(5))
    assert realloc.prepare(model, methods.lora(4)).budget == 3 * 4 * (4 + 4)


def test_a_model_of_one_layer_is_told_so() -> None:
    class One(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

    model = One()
    with pytest.raises(ConfigError, match=r"One has one layer only, in 'layer'; .* need at least two: give a model"):
        realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.topk(1))
