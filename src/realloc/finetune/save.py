"""The trained model on disk, as stock libraries load it."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

import realloc.record.disk as disk
from realloc.errors import plain
from realloc.export.merged import merged
from realloc.export.peft import peft
from realloc.finetune.aim import Aim
from realloc.finetune.arms.arm import Arm
from realloc.finetune.head import MeanHead, save_head
from realloc.finetune.weights import Loaded, quiet
from realloc.handle import Handle
from realloc.record.sealed import seal

MODEL: Final = "model"
LABELS: Final = "labels.json"


def write_model(folder: Path, loaded: Loaded, arm: Arm, labels: dict[str, Any], aim: Aim) -> Path:
    """Write ``model`` into a run's folder, whole or not at all.

    Weights that ``AutoModel`` (for causal-lm ``AutoModelForCausalLM``) reads by ``from_pretrained``, or an adapter that
    stock peft reads; of a base that lost layers always weights, since its name would give all of them. The tokenizer;
    the head (`realloc.finetune.head.with_head` puts it back on), in the labels' own units; the classes in order.

    Raises:
        RecordError: a disk error.
    """
    target, temporary = folder / MODEL, folder / f"tmp-{MODEL}"
    with disk.told("write the model into", folder, "make room or rights there, then resume the run"), _as_os_error():
        for old in (temporary, target):  # of a run that was cut short right here
            if old.exists():
                shutil.rmtree(old)
        disk.make_folder(temporary)
        if arm.rows is not None:
            arm.rows.detach()
        below = next((name for name, module in loaded.model.named_modules() if module is loaded.base), "")
        pooled = {site.storage for site in arm.handle.sites.values()} if isinstance(arm.handle, Handle) else set()
        shortened = getattr(loaded.base.config, "num_hidden_layers", None) != loaded.depth
        with quiet():
            if "rank" in pooled and not shortened:
                peft(loaded.model, temporary, base_model_name=loaded.name, below=below)
            else:
                saved: Any = arm.adapter or loaded.base
                if pooled:
                    saved = merged(loaded.model).get_submodule(below)
                elif arm.adapter is not None and shortened:
                    saved = copy.deepcopy(arm.adapter).merge_and_unload()
                saved.save_pretrained(temporary)
            loaded.tokenizer.save_pretrained(temporary)
        if isinstance(loaded.model, MeanHead):
            save_head(loaded.model, temporary, aim.mean, aim.scale)
            disk.replace(temporary / LABELS, seal(labels))
        for file in temporary.iterdir():  # safetensors makes its files private; who may read the folder may read them
            file.chmod(temporary.stat().st_mode & 0o666)
        disk.sync_folder(temporary)
        disk.rename(temporary, target)
    return target


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """safetensors reports a full disk with an error of its own."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(plain(str(error))) from error
