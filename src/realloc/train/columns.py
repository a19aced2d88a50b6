"""What the columns of a csv file are: numbers, a few categories, or ids that are looked up. One rule, told in words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from realloc.errors import ConfigError, nearest, plain

MANY: Final = 50  # different values, above which a column of text is looked up
RULE: Final = (
    f"a column of text with more than {MANY} different values in the training rows is looked up in a table, and so is "
    "one that --ids names; with fewer, each value is an input; numbers are numbers"
)
_ID: Final = re.compile(r"(?i:(?:.*[_ .-])?ids?)|.*[a-z]I[dD]s?", re.ASCII)
_IDS: Final = 2**63  # of a table, at most
_LETTERS: Final = 40  # of a name, in a message


@final
@dataclass(frozen=True)
class Looked:
    """A column that is looked up: its name, its values in the training rows, the share of test rows with another."""

    name: str
    ids: int
    unknown: float


@final
@dataclass(frozen=True)
class Columns:
    """How a csv file becomes inputs.

    Args:
        inputs: what each number that the model sees stands for: a column's name, or ``name=value``.
        categories: of columns whose values are inputs, how many there are.
        looked: columns that are looked up, in the order of the file.
        hints: columns of whole numbers that are called like ids and that --ids does not name.
    """

    inputs: tuple[str, ...] = ()
    categories: tuple[tuple[str, int], ...] = ()
    looked: tuple[Looked, ...] = ()
    hints: tuple[str, ...] = ()


NO_COLUMNS: Final = Columns()


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number; also nan and inf do."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def holds_text(cells: Sequence[str]) -> bool:
    """Whether more than half of a column's cells that are not empty are no numbers.

    A few words among numbers are a mistake to be told, not a reason to take all of them for names.

    >>> holds_text(["red", "blue", "7"]), holds_text(["1", "2", "red"]), holds_text(["", "", "1"])
    (True, False, False)
    """
    filled = [cell for cell in cells if cell]
    return 2 * sum(not is_number(cell) for cell in filled) > len(filled)


def seems_id(name: str, cells: Sequence[str]) -> bool:
    """Whether a column of numbers is called like ids, and holds many different whole ones.

    >>> many = [str(i) for i in range(60)]
    >>> seems_id("user_id", many), seems_id("userId", many), seems_id("paid", many), seems_id("id", ["0.5"] + many)
    (True, True, False, False)
    """
    whole = all(re.fullmatch(r"\s*\d+\s*", cell, re.ASCII) for cell in cells)
    return bool(_ID.fullmatch(name)) and whole and len(set(cells)) > MANY


def named_ids(path: str, header: Sequence[str], asked: Iterable[str]) -> frozenset[int]:
    """The columns that --ids names; a name with a comma that is no column is several names.

    Raises:
        ConfigError: no such column; the nearest is named.
    """
    found = set()
    for word in asked:
        for name in [word] if word in header else [part.strip() for part in word.split(",")]:
            if name not in header:
                shown = ", ".join(plain(one)[:_LETTERS] for one in header[:12])
                near = nearest(name, header, 1)
                raise ConfigError(f"data '{path}' has no column '{plain(name)}' for --ids (columns: {shown}){near}")
            found.add(header.index(name))
    return frozenset(found)


def known_values(where: str, cells: Sequence[str], training: Tensor) -> dict[str, int]:
    """The values of the training rows, each with its number, in alphabetical order.

    Raises:
        ConfigError: a cell of any row is empty, or says nan.
    """
    for i, cell in enumerate(cells):
        if not cell or cell.lower() == "nan":
            raise ConfigError(
                f"{where}, row {i + 2}: the cell is missing ('{cell}') where a category belongs; fill it in, write a "
                "word for what is missing, or drop the row"
            )
    return {value: number for number, value in enumerate(sorted({cells[i] for i in training.tolist()}))}


def ids_of(cells: Sequence[str], known: dict[str, int]) -> Tensor:
    """int64 ``[n]``: the number of each value; of one that training has not, a number beyond them, from its letters.

    >>> ids_of(["b", "a"], {"a": 0, "b": 1}).tolist(), ids_of(["c"], {"a": 0}).item() > 10**6
    ([1, 0], True)
    """
    return torch.tensor([known[cell] if cell in known else _beyond(cell, len(known)) for cell in cells])


def _beyond(value: str, count: int) -> int:
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return count + int.from_bytes(digest) % (_IDS - count)


def one_each(cells: Sequence[str], known: dict[str, int]) -> Tensor:
    """float64 ``[n, values]``: 1 where a row has the value; a value that training has not is none of them.

    >>> one_each(["b", "c"], {"a": 0, "b": 1}).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    found = torch.zeros(len(cells), len(known), dtype=torch.float64)
    rows = [i for i, cell in enumerate(cells) if cell in known]
    found[rows, [known[cells[i]] for i in rows]] = 1.0
    return found
