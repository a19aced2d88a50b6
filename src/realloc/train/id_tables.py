"""Columns that are looked up, in front of a net: full tables, or rows that share a budget of bytes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError, plain
from realloc.nn.budget import Costs, Split, bytes_of, split_of
from realloc.nn.double_hashing import DoubleHashing
from realloc.nn.embedding import Embedding
from realloc.nn.rows import Rows
from realloc.train.columns import Looked
from realloc.train.dataset import Cells

DIM: Final = 16  # numbers in a row
OWN: Final = 0.5  # part of the rows that ids may own, where rows move
DIRECTIONS: Final = 8  # of scores that compare directions
CANDIDATES: Final = 2.0
FLOAT: Final = 4  # bytes
START: Final = 0.1  # spread of the first values: beside numbers of spread 1, torch's own of 1 drown what is learnt


@final
@dataclass(frozen=True)
class TablePlan:
    """How columns are looked up: in full tables, which have a row for each id of the training rows, or within a budget.

    ``split`` says how a budget is spent on rows that ids share and own. It is None for full tables, and where ids read
    the product of two hashed rows, of which there are ``doubled``. Bytes are those of the rows, with the moments that
    the optimizer keeps of them, and of the sketch.
    """

    columns: tuple[Looked, ...]
    costs: Costs
    rows: int | str | None = None  # the budget, as it was asked for
    own: float = 0.0
    split: Split | None = None
    doubled: int = 0

    @property
    def budget(self) -> int | None:
        """In bytes; None for full tables."""
        if self.rows is None:
            return None
        return self.split.budget if self.split is not None else bytes_of(self.rows, self.costs, self.ids)

    @property
    def shared(self) -> int:
        """Rows that ids share."""
        return self.doubled if self.split is None else self.split.shared

    @property
    def to_own(self) -> int:
        """Rows that ids may own."""
        return 0 if self.split is None else self.split.own

    @property
    def sketch_bytes(self) -> int:
        """Of what knows the hot ids."""
        return 0 if self.split is None else self.split.buckets * self.costs.bucket

    @property
    def ids(self) -> int:
        """Of all columns together."""
        return sum(column.ids for column in self.columns)

    @property
    def full_bytes(self) -> int:
        """What full tables would take."""
        return self.ids * self.costs.row

    @property
    def parameters(self) -> int:
        """Trainable numbers: of full tables those of ids that training has not, too, which stay zero."""
        rows = self.ids + len(self.columns) if self.rows is None else self.shared + self.to_own
        return rows * self.costs.dim

    @property
    def width(self) -> int:
        """Numbers that the net sees of them."""
        return len(self.columns) * self.costs.dim

    def as_json(self) -> dict[str, Any]:
        """What a dry run and a result say of it."""
        full = self.rows is None
        return {
            "columns": {column.name: column.ids for column in self.columns},
            "unknown": {column.name: column.unknown for column in self.columns},
            "dim": self.costs.dim, "full_bytes": self.full_bytes,
            "budget": self.budget, "shared_rows": None if full else self.shared,
            "own_rows": None if full else self.to_own, "sketch_bytes": None if full else self.sketch_bytes,
        }  # fmt: skip


def full_tables(columns: Sequence[Looked], moments: int) -> TablePlan | None:
    """A row for each id; None where nothing is looked up."""
    return TablePlan(tuple(columns), Costs(DIM, FLOAT, moments, 0)) if columns else None


def shared_rows(
    columns: Sequence[Looked], rows: int | str, *, moments: int, own: float = OWN, directions: int = 0
) -> TablePlan:
    """Rows that all columns share, within a budget.

    Args:
        columns: what is looked up, at least one.
        rows: the budget: "10%" of the full tables' bytes, "200kB", or a number of rows.
        moments: numbers that the optimizer keeps of each weight.
        own: part of the rows that ids may own; 0: all of them are hashed.
        directions: of scores that compare directions.

    Raises:
        ConfigError: more than the full tables, or too little for one shared row for each column.
    """
    costs = Costs(DIM, FLOAT, moments, directions)
    full = TablePlan(tuple(columns), costs)
    names = ", ".join(f"'{plain(column.name)}'" for column in columns)
    try:
        budget = bytes_of(rows, costs, full.ids)
    except ConfigError:
        raise _too_many(rows, names, full) from None
    split = _split(budget, costs, own)
    if split is None or split.shared < len(columns):
        least = next(
            n for n in itertools.count(1) if (s := _split(n * costs.row, costs, own)) and s.shared >= len(columns)
        )
        raise _too_few(f"rows {rows} is {budget:,} bytes", names, " beside a row to own" if own else "", least, full)
    return TablePlan(tuple(columns), costs, rows, own, split)


def doubled_rows(columns: Sequence[Looked], rows: int | str, *, moments: int) -> TablePlan:
    """Rows that all columns share by double hashing, within a budget.

    Raises:
        ConfigError: more than the full tables, or too little for one row for each column, and two in all.
    """
    plan = TablePlan(tuple(columns), Costs(DIM, FLOAT, moments, 0), rows)
    names = ", ".join(f"'{plain(column.name)}'" for column in columns)
    try:
        budget = bytes_of(rows, plan.costs, plan.ids)
    except ConfigError:
        raise _too_many(rows, names, plan) from None
    count, least = budget // plan.costs.row, max(2, len(columns))  # of one row all products are the same
    if count < least:
        raise _too_few(f"rows {rows} is {budget:,} bytes", names, "", least, plan)
    return replace(plan, doubled=count)


def _too_few(told: str, names: str, beside: str, least: int, full: TablePlan) -> ConfigError:
    enough = f"take --rows {least} (rows, {least * full.costs.row:,} bytes) or more"
    return ConfigError(
        f"{told}, too few for one shared row for each column that is looked up ({names}){beside}; "
        f"{enough if least <= full.ids else 'leave --rows out'}"
    )


def _too_many(rows: int | str, names: str, full: TablePlan) -> ConfigError:
    return ConfigError(
        f"rows {rows} is more than the full tables of {names}, {full.full_bytes:,} bytes for {full.ids:,} ids: nothing "
        "would be shared; lower --rows, or leave it out for full tables"
    )


def _split(budget: int, costs: Costs, own: float) -> Split | None:
    try:
        return split_of(budget, costs, own, CANDIDATES)
    except ConfigError:
        return None


@final
class FullTable(nn.Embedding):
    """A row for each id of the training rows; every other id reads zeros."""

    def __init__(self, ids: int, dim: int) -> None:
        super().__init__(ids + 1, dim, padding_idx=ids)

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids ``[...]``."""
        return super().forward(input.clamp(max=self.num_embeddings - 1))


@final
class OfColumn(nn.Module):
    """A column of ids whose rows are by double hashing, beside other columns of the same rows."""

    def __init__(self, store: DoubleHashing, number: int) -> None:
        super().__init__()
        self.store, self.number = store, number

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids ``[...]``."""
        found: Tensor = self.store(input, self.number)
        return found


@final
class IdTables(nn.Module):
    """Looks the ids up, and puts what it finds beside the numbers."""

    def __init__(self, plan: TablePlan) -> None:
        super().__init__()
        costs = plan.costs
        made: list[nn.Module]
        start = START
        if plan.rows is None:
            made = [FullTable(column.ids, costs.dim) for column in plan.columns]
        elif plan.doubled:
            both, start = DoubleHashing(plan.ids, costs.dim, plan.rows, moments=costs.moments), START**0.5
            made = [OfColumn(both, number) for number in range(len(plan.columns))]
        else:
            store = Rows(
                costs.dim, plan.rows, num_ids=plan.ids, own=plan.own, candidates=CANDIDATES,
                directions=costs.directions, moments=costs.moments,
            )  # fmt: skip
            made = [Embedding(column.ids, costs.dim, store) for column in plan.columns]
        for name, table in zip(_module_names(plan.columns), made, strict=True):
            self.add_module(name, table)
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(start)

    def forward(self, cells: Cells) -> Tensor:
        """float32 ``[n, features + width]``."""
        found = [table(cells.ids[:, i]) for i, table in enumerate(self.children())]
        return torch.cat([cells.numbers, *found], 1)


def _module_names(columns: Sequence[Looked]) -> list[str]:
    """Names of modules, after those of columns.

    >>> _module_names([Looked("film", 9, 0.0), Looked("a.b", 9, 0.0), Looked("a b", 9, 0.0)])
    ['film_ids', 'a_b_ids', 'a_b_ids_2']
    """
    found: list[str] = []
    for number, column in enumerate(columns):
        name = re.sub(r"\W", "_", column.name, flags=re.ASCII) + "_ids"
        found.append(f"{name}_{number}" if name in found else name)
    return found
