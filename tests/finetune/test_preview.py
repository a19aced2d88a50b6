"""What a dry run foretells beside what the run then does: steps, parameters, optimizer state, ledger, layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from realloc.finetune.arms.table import KINDS, NAMES
from realloc.finetune.config import finetune_config
from realloc.finetune.preview import preview
from realloc.finetune.run import finetune

FLOAT = 4  # bytes; Adam counts its steps in one float32 for each tensor


def _moves(name: str) -> bool:
    return name in KINDS and KINDS[name].moves


@pytest.mark.filterwarnings("ignore:.*RA003")
@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_foretells_the_run(name: str, tiny: Path, table: Path) -> None:
    config = finetune_config({"model": str(tiny), "data": str(table), "method": name, "epochs": 1})
    told, found = preview(config), finetune(config)
    assert (told.used, told.settings, told.steps) == (found.used, found.settings, found.steps)
    assert told.parameters == found.parameters and told.why == found.why
    assert (told.ledger is None) == (found.ledger is None)
    if told.ledger is not None and found.ledger is not None:  # what the layers hold may move, what they share does not
        assert (told.ledger["budget"], told.ledger["head"]) == (found.ledger["budget"], found.ledger["head"])
    if _moves(name):
        return
    assert told.trainable == found.trainable and told.ledger == found.ledger
    tensors = (found.optimizer_bytes - told.optimizer_bytes) / FLOAT
    assert tensors.is_integer() and 0 < tensors < 100, "Adam's moments to the byte; it also counts steps"
    if found.layers is not None:
        trains = [name for name, word in told.layers.items() if word == "trains"]
        assert trains == [name.removeprefix("bert.") for name, flag in found.layers.items() if flag]


def test_a_budget_of_seconds_is_foretold_as_it_is(tiny: Path, table: Path) -> None:
    config = finetune_config({"model": str(tiny), "data": str(table), "method": "topk", "budget": "2s"})
    assert preview(config).seconds == 2.0


def test_the_model_that_was_tried_is_thrown_away(tiny: Path, table: Path) -> None:
    config = finetune_config({"model": str(tiny), "data": str(table), "method": "lora", "epochs": 1})
    alone = finetune(config)
    state = torch.random.get_rng_state()
    preview(config)
    assert torch.equal(torch.random.get_rng_state(), state), "nobody's random numbers are drawn"
    again = finetune(config)
    assert (again.held, again.ledger) == (alone.held, alone.ledger)
