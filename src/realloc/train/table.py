"""A csv file as a data set: a header line, columns of numbers, text or ids, one label column."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from realloc.errors import ConfigError, nearest, plain
from realloc.train.columns import is_number, named_ids
from realloc.train.dataset import HOLDOUT, TEST, Dataset, Rows, Task, parted
from realloc.train.inputs import Csv, inputs_of, numbers_of

LABEL_NAMES = ("label", "target", "y")
LEAST_ROWS = 5
MOST_CLASSES = 10_000
MOST_COLUMNS, MOST_LETTERS = 12, 40  # of the header, in a message


def load(path: Path, task: Task, label: str | None = None, ids: tuple[str, ...] = ()) -> Dataset:
    """Load a csv file, split it at random but always alike, and standardise its numbers by its training rows.

    ``label`` names the column to predict. Without it, a column called label, target or y is taken, else the last
    column if it alone holds text. ``ids`` names columns that are looked up whatever they hold; what becomes of the
    others says `realloc.train.columns.RULE`. Raises ConfigError naming row, column, value and remedy.
    """
    header, rows = _read(path)
    column = _label_column(path, header, rows, label)
    cells = [row[column].strip() for row in rows]
    where = f"{path.name}, column '{plain(header[column])}'"
    kept, back = parted(len(cells), TEST, "csv test")
    train, validation = parted(len(kept), HOLDOUT, "csv validation")
    named = named_ids(str(path), header, ids)
    found = inputs_of(Csv(path, header, rows, column), named, training=kept[train], test=back)
    if task == "classification":
        classes, y = _classes(where, cells)
    else:
        numbers = _label_numbers(path, header[column], cells)
        classes, y = (), torch.tensor(numbers, dtype=torch.float64)
    x = found.x.float()
    if found.scaled.any():
        plain_numbers = found.x[:, found.scaled]
        mean, scale = _moments(plain_numbers[kept])
        x[:, found.scaled] = ((plain_numbers - mean) / scale).float()
    label_scale = 1.0
    if task == "regression":
        label_mean, spread = _moments(y[kept])
        label_scale = float(spread)
        y = ((y - label_mean) / spread).float()

    def part(at: Tensor) -> Rows:
        return Rows(x[at], y[at], None if found.ids is None else found.ids[at])

    parts = part(kept[train]), part(kept[validation]), part(back)
    return Dataset(path.name, task, *parts, classes, None, label_scale, found.columns)


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, strict=True) if line]
    except FileNotFoundError as error:
        raise ConfigError(f"data '{path}' does not exist; check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"data '{path}' cannot be read ({error}); save it as UTF-8, comma-separated") from error
    if not lines:
        raise ConfigError(f"data '{path}' is empty; it needs a header line and rows of numbers")
    header, rows = [name.strip() for name in lines[0]], lines[1:]
    if len(header) < 2:
        hint = " (is it separated by something else than commas?)" if ";" in header[0] or "\t" in header[0] else ""
        raise ConfigError(f"data '{path}' has one column{hint}; it needs at least one feature and a label")
    for name in header:
        if header.count(name) > 1:
            raise ConfigError(f"data '{path}' has two columns named '{plain(name)}'; rename one")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            wrong = f"{len(row)} cells where the header has {len(header)}"
            raise ConfigError(f"{path.name}, row {i + 2}: {wrong}; mend the row")
    if len(rows) < LEAST_ROWS:
        raise ConfigError(f"data '{path}' has {len(rows)} rows, at least {LEAST_ROWS} are needed; give more rows")
    return header, rows


def _label_column(path: Path, header: list[str], rows: list[list[str]], label: str | None) -> int:
    if label is not None:
        if label not in header:
            raise ConfigError(
                f"data '{path}' has no column '{plain(label)}' for --label (columns: {_columns(header)})"
                f"{nearest(label, header, 1)}{_no_header(header)}"
            )
        return header.index(label)
    named = [i for i, name in enumerate(header) if name.lower() in LABEL_NAMES]
    if len(named) == 1:
        return named[0]
    if named:
        both = " and ".join(f"'{plain(header[i])}'" for i in named)
        raise ConfigError(f"data '{path}': {both} could each be the label column; name one by --label")
    text = [i for i in range(len(header)) if not all(is_number(row[i]) for row in rows)]
    if text == [len(header) - 1]:
        return text[0]
    if all(is_number(name) for name in header):
        raise ConfigError(f"data '{path}' has numbers in its first line; add a header line with the columns' names")
    raise ConfigError(
        f"data '{path}' has no label column: none is called {', '.join(LABEL_NAMES)} "
        f"(columns: {_columns(header)}); name it by --label"
    )


def _columns(header: list[str]) -> str:
    shown = ", ".join(plain(name)[:MOST_LETTERS] for name in header[:MOST_COLUMNS])
    return shown + (f", ... {len(header):,} in all" if len(header) > MOST_COLUMNS else "")


def _no_header(header: list[str]) -> str:
    if not all(is_number(name) for name in header):
        return ""
    return "; its first line holds numbers: add a header line with the columns' names"


def _label_numbers(path: Path, column: str, cells: list[str]) -> list[float]:
    for i, cell in enumerate(cells):
        if cell and not is_number(cell):
            raise ConfigError(
                f"{path.name}, row {i + 2}: the label column '{plain(column)}' holds text ('{plain(cell[:40])}'), and "
                "regression needs numbers; take --task classification, or name another column by --label"
            )
    return numbers_of(path, column, cells)


def _classes(where: str, cells: list[str]) -> tuple[tuple[str, ...], Tensor]:
    for i, cell in enumerate(cells):
        if not cell or cell.lower() == "nan":
            raise ConfigError(f"{where}, row {i + 2}: the label is missing ('{cell}'); fill it in or drop the row")
    numeric = all(is_number(cell) for cell in cells)
    if numeric:
        for i, cell in enumerate(cells):
            if not float(cell).is_integer():
                wrong = f"{where}, row {i + 2}: {plain(cell)} is not a class"
                raise ConfigError(f"{wrong}; take --task regression, or label by whole numbers")
        cells = [str(int(float(cell))) for cell in cells]
    names = sorted(set(cells), key=int) if numeric else sorted(set(cells))
    if len(names) < 2:
        raise ConfigError(f"{where}: every row has the class '{plain(names[0])}'; a classifier needs at least two")
    if len(names) > MOST_CLASSES:
        wrong = f"{len(names):,} classes where at most {MOST_CLASSES:,} are taken"
        raise ConfigError(f"{where}: {wrong}; name another column by --label, or take --task regression")
    place = {name: i for i, name in enumerate(names)}
    return tuple(names), torch.tensor([place[cell] for cell in cells], dtype=torch.int64)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    # a constant column has no spread: it is shifted to zero and left so
    mean, scale = values.mean(0), values.std(0, correction=0)
    return mean, torch.where(scale > 0, scale, torch.ones_like(scale))
