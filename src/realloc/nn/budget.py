"""Bytes of an embedding: what rows, their optimizer state and the sketch cost, and how many of each a budget buys."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, final

from realloc.errors import ConfigError
from realloc.kernels.sketch import WAYS
from realloc.sizes import bytes_in

SLOT: Final = 8 + 4 + 4 + 4 + 4  # id, table, row, score of a slot, and what of it is inherited
FLOAT: Final = 4  # a score, or one of the sums
COUNTS: Final = 8  # integers in the book of a store


@final
@dataclass(frozen=True)
class Costs:
    """What the parts of a store cost, in bytes.

    Args:
        dim: numbers in a row.
        itemsize: bytes of one of them.
        moments: numbers of the weight's dtype that the optimizer keeps for each: 2 for Adam, 1 for SGD with momentum,
            0 for SGD. An assumption that is stated, not measured: the budget holds before the optimizer is made.
        directions: sums that each slot and each shared row has, for scores that compare directions.
    """

    dim: int
    itemsize: int
    moments: int
    directions: int

    @property
    def row(self) -> int:
        """Of a row with its moments."""
        return self.dim * self.itemsize * (1 + self.moments)

    @property
    def shared(self) -> int:
        """Of a shared row: also its score and its sums."""
        return self.row + FLOAT * (1 + self.directions)

    @property
    def bucket(self) -> int:
        """Of four slots of the sketch."""
        return WAYS * (SLOT + FLOAT * self.directions)

    @property
    def book(self) -> int:
        """Of the counts of a store."""
        return 8 * COUNTS


@final
@dataclass(frozen=True)
class Split:
    """How a budget of bytes is spent: ``shared`` hashed rows, ``own`` rows for hot ids, ``buckets`` of the sketch."""

    costs: Costs
    budget: int
    shared: int
    own: int
    buckets: int

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return self.shared + self.own

    @property
    def fixed(self) -> int:
        """Bytes that are held whether an id owns a row or not."""
        return self.costs.book + self.shared * self.costs.shared + self.buckets * self.costs.bucket

    def held(self, owned: int) -> int:
        """Bytes held while so many rows are owned. The rest of the budget is parked.

        Raises:
            ConfigError: more rows than there are.
        """
        if not 0 <= owned <= self.own:
            raise ConfigError(f"{owned} rows are owned, of {self.own}")
        return self.fixed + owned * self.costs.row


def split_of(budget: int, costs: Costs, own: float, candidates: float) -> Split:
    """The largest store that a budget buys: the most rows, ``own`` of them for hot ids, and slots for these.

    Args:
        budget: in bytes.
        costs: of the parts.
        own: part of the rows that ids may own, 0 <= own < 1; 0: static hashing, no sketch.
        candidates: slots of the sketch for each row that can be owned, 1 or more; rounded up to buckets of four.

    Raises:
        ConfigError: the budget does not buy one shared row, or no row to own where ``own`` is above 0.

    >>> split = split_of(100 * 16 * 4 * 3, Costs(16, 4, 2, 0), own=0.5, candidates=2)
    >>> split.shared, split.own, split.buckets, split.budget - split.held(split.own)
    (44, 43, 22, 144)
    """

    def of(rows: int) -> Split:
        mine = math.floor(rows * own)
        return Split(costs, budget, rows - mine, mine, math.ceil(mine * candidates / WAYS))

    low, high = 0, max(1, budget // costs.row + 1)
    while low + 1 < high:  # the whole cost rises with the rows
        middle = (low + high) // 2
        found = of(middle)
        low, high = (middle, high) if found.held(found.own) <= budget else (low, middle)
    split = of(low)
    if split.shared < 1:
        raise ConfigError(
            f"rows buys {budget:,} bytes, and one shared row of {costs.dim} numbers with {costs.moments} moments costs "
            f"{costs.shared + costs.book:,}; raise rows"
        )
    if own and not split.own:
        raise ConfigError(
            f"rows buys {low} rows, {own:g} of them is less than one row to own; raise rows, or take own=0 (hashing)"
        )
    return split


def repriced(split: Split, itemsize: int) -> Split:
    """The same rows of another dtype: the budget falls or rises by what they cost less or more.

    >>> split = split_of(19200, Costs(16, 4, 2, 0), own=0.5, candidates=2)
    >>> repriced(split, 2).budget, repriced(split, 4) == split
    (10848, True)
    """
    costs = replace(split.costs, itemsize=itemsize)
    return replace(split, costs=costs, budget=split.budget + split.rows * (costs.row - split.costs.row))


def bytes_of(rows: int | str, costs: Costs, num_ids: int | None) -> int:
    """The budget in bytes: ``rows`` as a number of rows with their moments, as a part of the full table, or as bytes.

    Args:
        rows: an integer of 1 or more, or a string such as "10%" or "200kB".
        costs: of a row.
        num_ids: ids of the full table; None: unknown.

    Raises:
        ConfigError: no such number, or more than the full table.

    >>> costs = Costs(16, 4, 2, 0)
    >>> bytes_of("10%", costs, 1000), bytes_of(100, costs, 1000), bytes_of("19.2kB", costs, 1000)
    (19200, 19200, 19200)
    """
    if isinstance(rows, str):
        part, found = part_in(rows), bytes_in(rows) or 0
        if part is None and not found:
            raise ConfigError(
                f"rows is {rows!r}; as a string it is a part of the full table's bytes, such as '10%', or bytes, such "
                "as '200kB'"
            )
        if part is not None and num_ids is None:
            raise ConfigError(f"rows is {rows!r} of a table whose size is unknown; pass num_ids, or rows as an integer")
        if part is not None and num_ids is not None:
            found = math.floor(part * num_ids * costs.row)
    elif isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ConfigError(
            f"rows is {rows!r}; it is a number of rows, 1 or more, a part of the table such as '10%', or '200kB'"
        )
    else:
        found = rows * costs.row
    if num_ids is not None and found > num_ids * costs.row:
        raise ConfigError(
            f"rows is {rows!r}, and the full table has {num_ids:,} rows: nothing is to be shared; take torch.nn's "
            "own layer, or lower rows"
        )
    return found


def part_in(text: str) -> Fraction | None:
    """A percentage as an exact fraction, above 0 and at most 1; None where the text is none.

    >>> part_in("10%"), part_in("0%"), part_in("200kB")
    (Fraction(1, 10), None, None)
    """
    word = text.strip()
    try:
        part = Fraction(word.removesuffix("%")) / 100
    except (ValueError, ZeroDivisionError):
        return None
    return part if word.endswith("%") and 0 < part <= 1 else None
