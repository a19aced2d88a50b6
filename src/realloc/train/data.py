"""Data by name: ``fashion-mnist``, ``digits``, or a path that ends in ``.csv``."""

from __future__ import annotations

from pathlib import Path

import realloc.train.digits as digits
import realloc.train.fashion_mnist as fashion_mnist
import realloc.train.table as table
from realloc.errors import ConfigError, nearest, plain
from realloc.train.dataset import Dataset, Task

NAMES = ("fashion-mnist", "digits")


def load(name: str, task: Task | None = None, label: str | None = None, ids: tuple[str, ...] = ()) -> Dataset:
    """Load one data set, split and standardised the same way in every run.

    ``task`` is classification unless the caller says regression, which only a csv file allows. ``label`` names the
    csv column to predict, ``ids`` those that are looked up. Raises ConfigError with the nearest name when nothing is
    called so.
    """
    check(name, task, label, ids)
    if _is_table(name):
        return table.load(Path(name), task or "classification", label, ids)
    return fashion_mnist.load() if name == "fashion-mnist" else digits.load()


def check(name: str, task: Task | None = None, label: str | None = None, ids: tuple[str, ...] = ()) -> None:
    """Refuse what can be refused without loading: an unknown name, a task, label or ids that do not fit it."""
    if _is_table(name):
        return
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise ConfigError(
            f"data '{plain(name)}' is unknown; take {known} or a path that ends in .csv{nearest(name, NAMES, 1)}"
        )
    if task == "regression":
        raise ConfigError(f"task 'regression' does not fit data '{name}', which has classes; drop --task")
    if label is not None:
        raise ConfigError(f"label '{plain(label)}' has no meaning for data '{name}'; --label is for csv files")
    if ids:
        raise ConfigError(f"ids '{plain(ids[0])}' has no meaning for data '{name}'; --ids is for csv files")


def usual() -> str:
    """The data to take when none is named: Fashion-MNIST where it is found, else the digits."""
    return NAMES[0] if fashion_mnist.find() else NAMES[1]


def _is_table(name: str) -> bool:
    return name.lower().endswith(".csv")
