"""The trained model on disk, as stock libraries load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import realloc.record.disk as disk
from realloc.errors import ConfigError
from realloc.export.peft import peft
from realloc.finetune.arms import Arm
from realloc.finetune.weights import Loaded, Reader, quiet
from realloc.handle import Handle
from realloc.record.sealed import seal

HEAD = "head.safetensors"


def write_model(folder: Path, loaded: Loaded, arm: Arm, classes: tuple[str, ...], base: str) -> None:
    """Write weights that ``from_pretrained`` reads (or an adapter that stock peft reads), tokenizer and head.

    Raises:
        ConfigError: the folder holds something already.
    """
    target = folder / "model"
    if target.exists():
        raise ConfigError(f"{disk.shown(target)} exists already; give another --out")
    disk.make_folder(folder)
    if isinstance(arm.handle, Handle):
        below = next((name for name, module in loaded.model.named_modules() if module is loaded.base), "")
        peft(loaded.model, target, base_model_name=base, below=below)
    saved: Any = arm.adapter or loaded.base
    with quiet():
        if not isinstance(arm.handle, Handle):
            saved.save_pretrained(target)
        loaded.tokenizer.save_pretrained(target)
    if isinstance(loaded.model, Reader):
        head = {name: p.detach().contiguous() for name, p in loaded.model.head.state_dict().items()}
        save_file(head, target / HEAD)
    disk.replace(target / "labels.json", seal({"classes": list(classes), "torch": torch.__version__}))
