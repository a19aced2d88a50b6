"""Columns of text from a CSV or parquet file, checked row by row; rows are counted as a spreadsheet shows them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from realloc.errors import ConfigError, nearest, plain

PARQUET: Final = (".parquet", ".brotli", ".pq")
CSV: Final = (".csv", ".txt", "")
FIRST: Final = 2  # the number of the first row under the header
_MOST: Final = 1 << 24  # characters of one cell
_COLUMNS, _LETTERS = 12, 40  # of a header, in a message


def header_of(path: Path) -> list[str]:
    """Names of the columns.

    Raises:
        ConfigError: no file, an empty one, one of another kind, two columns of one name.
    """
    if not path.is_file():
        raise ConfigError(f"data '{plain(str(path))}' is no file; give a .csv or .parquet file, or reviews:department")
    ending = path.suffix.lower()
    if ending not in (*PARQUET, *CSV):
        raise ConfigError(
            f"'{plain(path.name)}': files in '{plain(ending)}' are not read; give a .csv or .parquet file"
        )
    if ending in PARQUET:
        names = [str(name) for name in _parquet(path).schema_arrow.names]
    else:
        names = next((row for _, row in _lines(path)), [])
    if not names:
        raise ConfigError(f"{plain(path.name)} is empty; it needs a header line with the columns' names, and rows")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{plain(path.name)} has two columns named '{plain(name)}'; rename one")
    return names


def column_of(path: Path, header: Sequence[str], asked: str | None, usual: Sequence[str], flag: str) -> str:
    """The column that a flag names, or the only one with a usual name.

    Raises:
        ConfigError: no such column, or none or several that could be meant; the columns are listed.
    """
    shown = ", ".join(plain(name)[:_LETTERS] for name in header[:_COLUMNS])
    shown += f", ... {len(header):,} in all" if len(header) > _COLUMNS else ""
    if asked is not None:
        if asked not in header:
            raise ConfigError(
                f"{plain(path.name)} has no column '{plain(asked)}' for --{flag} (columns: {shown})"
                f"{nearest(asked, header, 1)}{_separated(header)}"
            )
        return asked
    found = [name for name in header if name.strip().lower() in usual]
    if len(found) == 1:
        return found[0]
    why = "could each be meant" if found else f"is called {' or '.join(usual)}"
    which = " and ".join(f"'{plain(name)}'" for name in found) or "none"
    raise ConfigError(
        f"{plain(path.name)}: no column is named by --{flag}, and {which} {why} (columns: {shown}); write --{flag} "
        f"COLUMN{_separated(header)}"
    )


def columns_of(path: Path, names: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The cells of some columns, with the number of their row. A cell that is missing is an empty string.

    Raises:
        ConfigError: a file that cannot be read, a ragged row, a column of something else than text or numbers.
    """
    if path.suffix.lower() in PARQUET:
        rows = list(_parquet_rows(path, names))
    else:
        rows = list(_csv_rows(path, names))
    if not rows:
        raise ConfigError(f"{plain(path.name)} has a header and no rows; give it texts")
    return rows


def _csv_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    lines = _lines(path)
    _, header = next(lines)
    places = [header.index(name) for name in names]
    for number, row in lines:
        if len(row) != len(header):
            raise ConfigError(
                f"{plain(path.name)}, row {number}: {len(row)} cells where the header has {len(header)}; put texts "
                "that hold commas or quotes into quotes"
            )
        yield number, [row[place].strip() for place in places]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_MOST)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file, strict=True), 1):
                if row:  # a blank line counts, and is no row
                    yield number, [cell.strip() for cell in row] if number == 1 else row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{plain(path.name)} cannot be read as CSV ({plain(str(error))[:200]}); save it as UTF-8, "
            "comma-separated, with texts in quotes"
        ) from error


def _separated(header: Sequence[str]) -> str:
    odd = len(header) == 1 and (";" in header[0] or "\t" in header[0])
    return "; is it separated by something else than commas?" if odd else ""


def _parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(
            f"{plain(path.name)} is parquet: pip install 'realloc[finetune]', or save it as CSV"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{plain(path.name)} cannot be read as parquet: {plain(str(error))[:200]}") from error


def _parquet_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    found = _parquet(path).read(columns=list(names)).to_pydict()
    for i, row in enumerate(zip(*(found[name] for name in names), strict=True)):
        yield i + FIRST, [_words(path, i + FIRST, name, cell) for name, cell in zip(names, row, strict=True)]


def _words(path: Path, row: int, column: str, cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():  # a class that pandas made a float of, to hold gaps
        return str(int(cell))
    if not isinstance(cell, str | int | float):
        raise ConfigError(
            f"{plain(path.name)}, row {row}, column '{plain(column)}' holds a {type(cell).__name__}; take a column of "
            "text or numbers"
        )
    return str(cell).strip()
