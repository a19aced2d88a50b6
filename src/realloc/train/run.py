"""One run from config to result, with or without a run folder; a resume is the same run, begun further on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import realloc.train.arms as arms
from realloc.errors import ConfigError
from realloc.record.folder import RunFolder
from realloc.train.config import RunConfig, run_config
from realloc.train.keep import LENGTH, Keep
from realloc.train.progress import Tell, silent
from realloc.train.result import RunResult, from_json
from realloc.train.session import session


def train(config: RunConfig, folder: Path | None = None, tell: Tell = silent) -> RunResult:
    """Run a config from its start; with a folder, recorded there.

    Raises:
        ConfigError: bad input, before the first step; the folder is then given up again.
        RecordError: a folder that is taken, or a disk that fails.
        RunError: the training itself failed.
        Interrupted: Ctrl-C; a checkpoint is written where there is a folder.
    """
    arms.method_of(config)
    config = config if config.threads else config.model_copy(update={"threads": torch.get_num_threads()})
    if folder is None:
        return session(config, None, tell)
    with in_new_folder(folder, config.model_dump(mode="json"), LENGTH) as held:
        return session(config, Keep(held), tell)


def resume(folder: Path, tell: Tell = silent) -> RunResult:
    """Go on with a run from its last checkpoint, or from its config where there is none; a finished one is read."""
    with RunFolder.open(folder) as held:
        if held.result is not None:
            return from_json(held.result)
        return session(run_config(held.config), Keep(held), tell)


def run_in(folder: Path, config: RunConfig, tell: Tell = silent) -> RunResult:
    """Train in a folder, or go on with what is there."""
    act = partial(resume, folder) if (folder / "config.json").exists() else partial(train, config, folder)
    return act(tell)


@contextlib.contextmanager
def in_new_folder(folder: Path, content: Mapping[str, Any], *written: str) -> Iterator[RunFolder]:
    """Begin a run in a folder of its own, and give the folder up again where its input is refused.

    Args:
        folder: a new or an empty one.
        content: of its config.
        written: files that the run writes before its first step.

    Raises:
        RecordError: a folder that is taken, or a disk that fails.
    """
    with RunFolder.create(folder, content) as held:
        try:
            yield held
        except ConfigError:
            _give_up(held, *written)
            raise


def _give_up(held: RunFolder, *written: str) -> None:
    """Leave no trace of a run in which nothing was trained: the same command must work once its input is mended."""
    held.close()
    for name in ("config.json", "events.jsonl", *written, "run.lock", "owner.json"):
        held.file(name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        held.path.rmdir()
