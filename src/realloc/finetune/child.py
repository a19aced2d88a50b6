"""One fine-tuning run in a process of its own, begun or gone on with: ``python -m realloc.finetune.child``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realloc.compare.child import serve
from realloc.finetune.config import finetune_config
from realloc.finetune.run import finetune, resume
from realloc.train.progress import Tell


def _run(job: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    folder = None if job["folder"] is None else Path(job["folder"])
    if folder is not None and (folder / "config.json").exists():
        return resume(folder, tell).as_json()
    return finetune(finetune_config(job["config"]), folder, tell).as_json()


if __name__ == "__main__":
    serve(_run)
