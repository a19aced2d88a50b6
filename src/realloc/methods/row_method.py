"""A method over embedding rows: how many rows a table may train, and which tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from realloc.errors import ConfigError


@final
@dataclass(frozen=True)
class RowMethod:
    """The parts of one way to spend a budget of rows on embedding tables.

    Args:
        name: as users call it.
        rows: rows that each table may hold in its pool, 1 or more. Only these have gradients and optimizer state.
        reference: arXiv number of the paper it stands beside.
        tables: shell patterns over module names; None: every table that fits (see `realloc.choose_tables`).
    """

    name: str
    rows: int
    reference: str = ""
    tables: tuple[str, ...] | None = None

    moves: ClassVar[bool] = True  # with the ids, not by a schedule

    def __post_init__(self) -> None:
        if isinstance(self.rows, bool) or not isinstance(self.rows, int) or self.rows < 1:
            raise ConfigError(f"rows is {self.rows!r}; it is the number of rows a table may train: an integer from 1")

    def on(self, *tables: str) -> RowMethod:
        """The same method on named embedding tables (shell patterns over module names)."""
        return replace(self, tables=tables or None)

    @property
    def asked(self) -> str:
        """What it was asked for, in words."""
        return f"{self.rows} rows" + ("" if self.tables is None else f" of {', '.join(self.tables)}")
