"""A table of ids over a store of rows: what layers that look one up have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from realloc.errors import ConfigError
from realloc.nn.checks import whole
from realloc.nn.rows import Rows


class Table(nn.Module, ABC):
    """A store, alone or shared with other tables, and the number of this table in it."""

    def __init__(
        self,
        num_ids: int | None,
        dim: int,
        rows: int | str | Rows,
        padding_idx: int | None,
        own: float | None,
        directions: int | None,
    ) -> None:
        super().__init__()
        self.store = store_of(num_ids, dim, rows, own, directions)
        self.num_ids, self.dim, self.padding_idx = num_ids, dim, padding_of(padding_idx, num_ids)
        self.table = self.store.enroll(num_ids)

    @property
    def weight(self) -> nn.Parameter:
        """The rows, ``[S, dim]``, of all tables that share them."""
        return self.store.weight

    @property
    def num_embeddings(self) -> int | None:
        """``num_ids``, as torch calls it."""
        return self.num_ids

    @property
    def embedding_dim(self) -> int:
        """``dim``, as torch calls it."""
        return self.dim

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """Look up ids."""


def store_of(num_ids: int | None, dim: int, rows: int | str | Rows, own: float | None, directions: int | None) -> Rows:
    """The store that was given, or one for this table alone.

    Raises:
        ConfigError: the store is of other rows, or settings were given that are the store's.
    """
    if not isinstance(rows, Rows):
        return Rows(dim, rows, num_ids=num_ids, own=0.5 if own is None else own, directions=directions or 0)
    if num_ids is not None:
        whole("num_ids", num_ids, 1)
    if rows.dim != dim:
        raise ConfigError(f"dim is {dim}, and the rows that were given have {rows.dim} numbers; use one dim for all")
    if own is not None or directions is not None:
        raise ConfigError("own and directions are the store's: pass them to realloc.nn.Rows(...)")
    return rows


def padding_of(padding: int | None, num_ids: int | None) -> int | None:
    """The id that never trains; from the end of the table where it is negative, as in torch.

    Raises:
        ConfigError: no id of this table.
    """
    if padding is None:
        return None
    count = num_ids or 0
    found = padding + count if padding < 0 and num_ids is not None else padding
    if found < 0 or (num_ids is not None and found >= count):
        raise ConfigError(f"padding_idx is {padding}, and the ids are 0 to {count - 1 if num_ids else 2**63 - 1}")
    return found
