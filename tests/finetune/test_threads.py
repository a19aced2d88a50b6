"""A run computes with the threads that it was told, and leaves torch with as many as it found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import realloc.train.run as train
from realloc.errors import ConfigError
from realloc.finetune.config import finetune_config
from realloc.finetune.preview import preview
from realloc.finetune.run import finetune
from realloc.train.config import run_config


def test_a_run_and_a_preview_leave_the_number_of_threads(tiny: Path, table: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    asked = {
        "model": str(tiny),
        "data": str(table),
        "method": "topk",
        "settings": {"k": 1},
        "epochs": 0.2,
        "threads": 3,
    }
    assert finetune(finetune_config(asked), tmp_path / "out").threads == 3
    assert torch.get_num_threads() == 1
    preview(finetune_config(asked))
    assert torch.get_num_threads() == 1
    for wrong in (finetune, preview):
        with pytest.raises(ConfigError, match="no file"):
            wrong(finetune_config({**asked, "data": "gone.csv"}))
        assert torch.get_num_threads() == 1


def test_so_does_a_run_of_weights() -> None:
    torch.set_num_threads(1)
    made = train.train(run_config({"data": "digits", "model": "mlp:8", "density": 0.5, "epochs": 1, "threads": 2}))
    assert made.threads == 2 and torch.get_num_threads() == 1
