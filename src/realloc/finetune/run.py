"""One fine-tuning run from config to result, with or without a run folder; a resume is the same run, further on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from realloc.errors import ConfigError, RecordError, plain
from realloc.finetune.config import FinetuneConfig, finetune_config
from realloc.finetune.keep import DECIDED, Keep
from realloc.finetune.result import FinetuneResult, from_json
from realloc.finetune.session import session
from realloc.record.folder import RunFolder, read_config
from realloc.train.progress import Tell, silent
from realloc.train.run import in_new_folder

KEY: Final = "finetune"  # in a folder's config: which kind of run it is


def finetune(config: FinetuneConfig, folder: Path | None = None, tell: Tell = silent) -> FinetuneResult:
    """Fine-tune from the start; with a folder, recorded there, and the model is written into its ``model``.

    Raises:
        ConfigError: bad input, before the first step; the folder is then given up again.
        RecordError: a folder that is taken, or a disk that fails.
        RunError: the training itself failed.
        Interrupted: Ctrl-C; a checkpoint is written where there is a folder.
    """
    config = config if config.threads else config.model_copy(update={"threads": torch.get_num_threads()})
    if folder is None:
        return session(config, None, tell)
    with in_new_folder(folder, {KEY: config.model_dump(mode="json")}, DECIDED) as held:
        return session(config, Keep(held), tell)


def resume(folder: Path, tell: Tell = silent) -> FinetuneResult:
    """Go on with a run from its last checkpoint, or from its config where there is none; a finished one is read."""
    with RunFolder.open(folder) as held:
        if held.result is not None:
            return from_json(held.result)
        return session(_config(held.config, folder), Keep(held), tell)


def is_finetune(folder: Path) -> bool:
    """Whether a run folder holds a fine-tuning run."""
    return KEY in read_config(folder)


def check_same(folder: Path, given: Mapping[str, Any]) -> None:
    """Refuse flags that say something else than the run in a folder was started with.

    Raises:
        ConfigError: the first flag that differs.
    """
    config = _config(read_config(folder), folder)
    asked = finetune_config({**config.model_dump(), **given})
    refuse_other(config.model_dump(), {key: getattr(asked, key) for key in given}, folder)


def refuse_other(there: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse values that are not those of a run that was begun.

    Raises:
        ConfigError: the first that differs.
    """
    for key, now in asked.items():
        if there.get(key) != now:
            raise ConfigError(
                f"the run in {plain(str(folder))} was started with {key} {plain(str(there.get(key)))}, not "
                f"{plain(str(now))}; leave the flag out to go on with it, or give another --out"
            )


def _config(content: Mapping[str, Any], folder: Path) -> FinetuneConfig:
    if KEY not in content:
        raise RecordError(f"{plain(str(folder))} holds no finetune run; go on with it by: realloc resume")
    return finetune_config(content[KEY])
