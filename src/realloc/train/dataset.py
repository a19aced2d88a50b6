"""A data set in memory: train, validation and test rows, standardised by the training rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from realloc.errors import ConfigError
from realloc.rng import stream
from realloc.train.columns import NO_COLUMNS, Columns

Task = Literal["classification", "regression"]

HOLDOUT = 0.1  # share of the training rows kept back for validation
TEST = 0.2  # share of the rows kept back for test where the data has no test set of its own


class Cells(NamedTuple):
    """What a model with tables sees. ``numbers`` float32 ``[n, features]``; ``ids`` int64 ``[n, tables]``."""

    numbers: Tensor
    ids: Tensor


Inputs = Tensor | Cells


class Rows(NamedTuple):
    """Rows of one part. ``x`` float32 ``[n, features]``; ``y`` int64 classes or float32 labels, ``[n]``.

    ``ids`` int64 ``[n, tables]`` where columns are looked up.
    """

    x: Tensor
    y: Tensor
    ids: Tensor | None = None

    def at(self, chosen: Tensor | slice) -> tuple[Inputs, Tensor]:
        """What the model sees of some rows, and their labels."""
        x = self.x[chosen]
        return (x if self.ids is None else Cells(x, self.ids[chosen])), self.y[chosen]


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, ready to train on.

    ``image`` is (channels, height, width) where the features are pixels. ``label_scale`` turns a regression error
    back into the label's own unit; it is 1 for classes. ``columns`` says how a csv file became inputs. The split is
    the same for every run and every seed.
    """

    name: str
    task: Task
    train: Rows
    validation: Rows
    test: Rows
    classes: tuple[str, ...] = ()
    image: tuple[int, int, int] | None = None
    label_scale: float = 1.0
    columns: Columns = NO_COLUMNS

    @property
    def features(self) -> int:
        """Columns of ``x``."""
        return int(self.train.x.shape[1])

    @property
    def outputs(self) -> int:
        """Values a model returns per row: one per class, or one for regression."""
        return len(self.classes) if self.task == "classification" else 1

    def describe(self) -> str:
        """Say what was loaded, in one line."""
        parts = f"{len(self.train.y):,} train, {len(self.validation.y):,} validation, {len(self.test.y):,} test rows"
        kind = f"{len(self.classes)} classes" if self.classes else "one number to predict"
        looked = f", {len(self.columns.looked)} looked up" if self.columns.looked else ""
        return f"{self.name}: {parts}, {self.features:,} features{looked}, {kind}"


def permuted(n: int, purpose: str) -> Tensor:
    """Order ``n`` rows at random, the same on every machine and in every run."""
    return torch.randperm(n, generator=stream(0, purpose))


def parted(n: int, share: float, purpose: str) -> tuple[Tensor, Tensor]:
    """Split ``n`` rows into (kept, held back), both sorted; each side gets at least one row."""
    if n < 2:
        raise ConfigError(f"{n} row(s) cannot be split in two for {purpose}; give more rows")
    order = permuted(n, purpose)
    back = min(n - 1, max(1, round(n * share)))
    return order[back:].sort().values, order[:back].sort().values


def hold_out(x: Tensor, y: Tensor, name: str) -> tuple[Rows, Rows]:
    """Split training rows into (train, validation)."""
    kept, back = parted(len(y), HOLDOUT, f"{name} validation")
    return Rows(x[kept], y[kept]), Rows(x[back], y[back])
