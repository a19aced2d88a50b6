"""From the cells of a csv file to inputs: numbers side by side, one input for each category, ids to look up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from realloc.errors import ConfigError, plain
from realloc.train.columns import MANY, Columns, Looked, holds_text, ids_of, is_number, known_values, one_each, seems_id


@final
@dataclass(frozen=True, eq=False)
class Csv:
    """The cells of a file, and which column is the label."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    label: int


@final
@dataclass(frozen=True, eq=False)
class Found:
    """What a csv file becomes."""

    x: Tensor  # float64 [n, features]
    scaled: Tensor  # bool [features]: which are numbers, and not one of several categories
    ids: Tensor | None  # int64 [n, looked up]
    columns: Columns


def inputs_of(table: Csv, named: frozenset[int], *, training: Tensor, test: Tensor) -> Found:
    """Turn every column but the label's into inputs, by `realloc.train.columns.RULE`.

    Args:
        table: the file.
        named: columns that --ids names.
        training, test: numbers of their rows.

    Raises:
        ConfigError: a cell that does not fit, with its row, column and value; the label among the ids.
    """
    path, label = table.path, table.label
    if label in named:
        raise ConfigError(f"column '{plain(table.header[label])}' of '{path}' is the label; take it out of --ids")
    blocks = [torch.zeros(len(table.rows), 0, dtype=torch.float64)]
    tables: list[Tensor] = []
    looked: list[Looked] = []
    categories: list[tuple[str, int]] = []
    names: list[str] = []
    scaled: list[bool] = []
    hints: list[str] = []
    for j, name in enumerate(table.header):
        if j == label:
            continue
        cells = [row[j].strip() for row in table.rows]
        if j not in named and not holds_text(cells):
            blocks.append(torch.tensor(numbers_of(path, name, cells), dtype=torch.float64).unsqueeze(1))
            hints += [name] if seems_id(name, cells) else []
            names.append(name)
            scaled.append(True)
            continue
        known = known_values(f"{path.name}, column '{plain(name)}'", cells, training)
        if j in named or len(known) > MANY:
            tables.append(ids_of(cells, known))
            looked.append(Looked(name, len(known), float((tables[-1][test] >= len(known)).double().mean())))
            continue
        blocks.append(one_each(cells, known))
        names += [f"{name}={value}" for value in known]
        scaled += [False] * len(known)
        categories.append((name, len(known)))
    columns = Columns(tuple(names), tuple(categories), tuple(looked), tuple(hints))
    ids = torch.stack(tables, 1) if tables else None
    return Found(torch.cat(blocks, 1), torch.tensor(scaled, dtype=torch.bool), ids, columns)


def numbers_of(path: Path, column: str, cells: list[str]) -> list[float]:
    """Read a column of numbers.

    Raises:
        ConfigError: a cell that is empty, text, or no usable number; with row, column, value and remedy.
    """
    return [_number(path, i, column, cell) for i, cell in enumerate(cells)]


def _number(path: Path, row: int, column: str, cell: str) -> float:
    # + 2: rows are counted as an editor shows them, the header being line 1
    where = f"{path.name}, row {row + 2}, column '{plain(column)}'"
    if not cell.strip():
        raise ConfigError(f"{where}: the cell is empty where a number belongs; fill it in or drop the row")
    if not is_number(cell):
        raise ConfigError(
            f"{where}: '{plain(cell[:40])}' is text where a number belongs; mend the cell, drop the column, name it by "
            "--ids if it holds names, or name the label column by --label"
        )
    value = float(cell)
    # the bound keeps float32 and the variance finite
    if not math.isfinite(value) or abs(value) > 1e30:
        raise ConfigError(f"{where}: {plain(cell.strip()[:40])} is not a usable number; fill it in or drop the row")
    return value
