"""``realloc inspect``, ``realloc methods`` and ``realloc info``: they change nothing."""

from __future__ import annotations

import inspect as python_inspect
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import realloc.cli.flags as flags
import realloc.cli.outcome as outcome
import realloc.cli.text as text
import realloc.train.fashion_mnist as fashion_mnist
from realloc.cli.story import story, tell
from realloc.train.arms import CONTROLS
from realloc.train.optimizers import OPTIMIZERS
from realloc.train.settings import RECIPES, options, recipe

PACKAGES = ("realloc", "torch", "numpy", "numba", "safetensors", "pydantic", "typer", "rich", "scikit-learn")


def inspect(
    folder: Annotated[Path, typer.Argument(help="a run folder", show_default=False)], json: flags.Json = False
) -> None:
    """Show what a run did so far: its config, its moves, what each layer gained or lost."""
    with outcome.told():
        flags.check_folder(folder)
        found = story(folder)
        outcome.data_json(found) if json else outcome.data(tell(found))


def methods(json: flags.Json = False) -> None:
    """List the methods and controls, with their papers and settings."""
    with outcome.told():
        rows = [_method(name) for name in RECIPES]
        rows += [{"name": n, "about": about, "reference": None, "settings": {}} for n, about in CONTROLS.items()]
        if json:
            outcome.data_json({"methods": rows})
            return
        for row in rows:
            cited = f" [{row['reference']}]" if row["reference"] else ""
            chosen = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
            outcome.data(f"{row['name']}{cited}\n  {row['about']}" + (f"\n  --set {chosen}" if chosen else ""))


def _method(name: str) -> dict[str, Any]:
    about = (python_inspect.getdoc(RECIPES[name]) or "").split("\n\n")[0].replace("\n", " ").replace("``", "")
    settings = {
        o.name: o.default if isinstance(o.default, bool | int | float) else str(o.default) for o in options(name)
    }
    return {
        "name": name,
        "about": about,
        "reference": recipe(name, 0.5, {}).reference or None,
        "settings": settings,
    }


def info(json: flags.Json = False) -> None:
    """Show versions, threads, and the data found here: what a bug report needs."""
    with outcome.told():
        found = fashion_mnist.find()
        facts: dict[str, Any] = {
            "python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(), "fashion-mnist": str(found) if found else None,
            "optimizers": ", ".join(OPTIMIZERS), **{name: _version(name) for name in PACKAGES},
        }  # fmt: skip
        if json:
            outcome.data_json(facts)
        else:
            rows = [[key, "not found" if value is None else str(value)] for key, value in facts.items()]
            outcome.data(text.table(["", ""], rows, left=2).lstrip("\n"))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
