"""A csv file as a data set: a header line, numbers in every feature column, one label column."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import torch
from torch import Tensor

from realloc.errors import ConfigError, nearest, plain
from realloc.train.dataset import TEST, Dataset, Rows, Task, hold_out, parted

LABEL_NAMES = ("label", "target", "y")
LEAST_ROWS = 5
MOST_CLASSES = 10_000
MOST_COLUMNS, MOST_LETTERS = 12, 40  # of the header, in a message


def load(path: Path, task: Task, label: str | None = None) -> Dataset:
    """Load a csv file, split it at random but always alike, and standardise it by its training rows.

    ``label`` names the column to predict. Without it, a column called label, target or y is taken, else the last
    column if it alone holds text. Raises ConfigError naming row, column, value and remedy.
    """
    header, rows = _read(path)
    column = _label_column(path, header, rows, label)
    x = torch.tensor(_numbers(path, header, rows, column), dtype=torch.float64)
    cells = [row[column].strip() for row in rows]
    where = f"{path.name}, column '{plain(header[column])}'"
    if task == "classification":
        classes, y = _classes(where, cells)
    else:
        numbers = _label_numbers(path, header[column], cells)
        classes, y = (), torch.tensor(numbers, dtype=torch.float64)
    kept, back = parted(len(cells), TEST, "csv test")
    mean, scale = _moments(x[kept])
    x = ((x - mean) / scale).float()
    label_scale = 1.0
    if task == "regression":
        label_mean, spread = _moments(y[kept])
        label_scale = float(spread)
        y = ((y - label_mean) / spread).float()
    train, validation = hold_out(x[kept], y[kept], "csv")
    return Dataset(path.name, task, train, validation, Rows(x[back], y[back]), classes, None, label_scale)


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
    text = [i for i in range(len(header)) if not all(_is_number(row[i]) for row in rows)]
    if text == [len(header) - 1]:
        return text[0]
    if all(_is_number(name) for name in header):
        raise ConfigError(f"data '{path}' has numbers in its first line; add a header line with the columns' names")
    raise ConfigError(
        f"data '{path}' has no label column: none is called {', '.join(LABEL_NAMES)} "
        f"(columns: {_columns(header)}); name it by --label"
    )


def _columns(header: list[str]) -> str:
    shown = ", ".join(plain(name)[:MOST_LETTERS] for name in header[:MOST_COLUMNS])
    return shown + (f", ... {len(header):,} in all" if len(header) > MOST_COLUMNS else "")


def _no_header(header: list[str]) -> str:
    if not all(_is_number(name) for name in header):
        return ""
    return "; its first line holds numbers: add a header line with the columns' names"


def _label_numbers(path: Path, column: str, cells: list[str]) -> list[float]:
    for i, cell in enumerate(cells):
        if cell and not _is_number(cell):
            raise ConfigError(
                f"{path.name}, row {i + 2}: the label column '{plain(column)}' holds text ('{plain(cell[:40])}'), and "
                "regression needs numbers; take --task classification, or name another column by --label"
            )
    return [_number(path, i, column, cell) for i, cell in enumerate(cells)]


def _numbers(path: Path, header: list[str], rows: list[list[str]], skip: int) -> list[list[float]]:
    keep = [i for i in range(len(header)) if i != skip]
    return [[_number(path, i, header[j], row[j]) for j in keep] for i, row in enumerate(rows)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, row: int, column: str, cell: str) -> float:
    # + 2: rows are counted as an editor shows them, the header being line 1
    where = f"{path.name}, row {row + 2}, column '{plain(column)}'"
    if not cell.strip():
        raise ConfigError(f"{where}: the cell is empty where a number belongs; fill it in or drop the row")
    if not _is_number(cell):
        raise ConfigError(
            f"{where}: '{plain(cell[:40])}' is text where a number belongs; encode it as numbers, drop the column, "
            "or name the label column by --label"
        )
    value = float(cell)
    # the bound keeps float32 and the variance finite
    if not math.isfinite(value) or abs(value) > 1e30:
        raise ConfigError(f"{where}: {plain(cell.strip()[:40])} is not a usable number; fill it in or drop the row")
    return value


def _classes(where: str, cells: list[str]) -> tuple[tuple[str, ...], Tensor]:
    for i, cell in enumerate(cells):
        if not cell or cell.lower() == "nan":
            raise ConfigError(f"{where}, row {i + 2}: the label is missing ('{cell}'); fill it in or drop the row")
    numeric = all(_is_number(cell) for cell in cells)
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
