"""The rows of an embedding table that train: a unit is one row, kept in a small pool; the others are read frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from realloc.errors import StateError
from realloc.sites.grid import Grid


class Rows(Protocol):
    """A pool of rows, as an embedding sees it."""

    @property
    def parameter(self) -> nn.Parameter:
        """The values, ``[R, d]``."""

    @property
    def table(self) -> nn.Parameter:
        """What ids without a row read, ``[V, d]``; frozen."""

    @property
    def held(self) -> int:
        """Rows held now."""

    def slots_of(self, ids: Tensor) -> Tensor:
        """The slot of each id, -1 where it has none."""

    def places(self) -> Tensor:
        """Sorted ids that hold a row."""

    def whole(self) -> Tensor:
        """The table with the held rows in it, ``[V, d]``."""

    def sure(self) -> None:
        """Refuse a pool whose rows and ids do not belong together."""


@final
class RowSite:
    """The rows of one table. ``held`` and ``capacity`` count parameters, ``rows`` and ``held_rows`` rows.

    An id is a row's *place*. Which ids hold a row is read from the pool, so that a loaded or copied model is right
    without a call.
    """

    storage: ClassVar[str] = "row"
    compute: ClassVar[str] = "gather"

    def __init__(self, name: str, shape: tuple[int, int], padding: int | None, pool: Rows) -> None:
        self.name = name
        self.shape = shape  # of the table, (V, d)
        self.grid = Grid(shape[0], shape[1], 1, shape[1])
        self.padding = padding  # an id that never trains
        self.pool = pool
        self.hear: Callable[[RowSite, Tensor], None] | None = None  # told of ids before they are read, in training

    def __repr__(self) -> str:
        return f"RowSite({self.name!r}, {self.held_rows:,} of at most {self.rows:,} rows held, of {self.shape[0]:,})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"hear": None}  # a copy is another model's

    @property
    def rows(self) -> int:
        """Rows that may be held."""
        return self.pool.parameter.shape[0]

    @property
    def held_rows(self) -> int:
        """Rows held now."""
        return self.pool.held

    @property
    def held(self) -> int:
        """Parameters of so many."""
        return self.pool.held * self.grid.size

    @property
    def capacity(self) -> int:
        """Parameters of the whole table."""
        return self.shape[0] * self.shape[1]

    def places(self) -> Tensor:
        """Sorted int64 ids that hold a row."""
        return self.pool.places()

    def mask(self) -> Tensor:
        """Bool ``[V]``: which ids hold a row."""
        held = torch.zeros(self.shape[0], dtype=torch.bool, device=self.pool.parameter.device)
        held[self.places()] = True
        return held

    def read(self, ids: Tensor) -> Tensor:
        """``[..., d]`` for ids ``[...]``: the pool's row where an id holds one, else the table's, without gradient."""
        rows, table = self.pool.parameter, self.pool.table.detach()
        self._tell(ids)
        slots = self.pool.slots_of(ids)
        held = slots >= 0
        if not torch.compiler.is_compiling() and bool(held.all()):
            return nn.functional.embedding(slots, rows)
        inside = nn.functional.embedding(slots.clamp(min=0), rows)
        return torch.where(held.unsqueeze(-1), inside, nn.functional.embedding(ids, table))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _tell(self, ids: Tensor) -> None:
        self.pool.sure()
        if self.hear is not None and torch.is_grad_enabled() and self.pool.parameter.requires_grad:
            self.hear(self, ids)

    def weight(self) -> Tensor:
        """The whole table as it is now, ``[V, d]``, read-only."""
        self.pool.sure()
        if not (torch.is_grad_enabled() and self.pool.parameter.requires_grad):
            return self.pool.whole()
        found: Tensor = _Whole.apply(self.pool.parameter, self.pool.whole(), self.name)  # type: ignore[no-untyped-call]
        return found


@final
class _Whole(torch.autograd.Function):
    """A table that is looked at. A gradient that comes back is of every row, and is refused."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, whole: Tensor, name: str) -> Tensor:
        ctx.name = name
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise StateError(
            f"{ctx.name} got a gradient for its whole weight: the model reads it besides looking ids up (a tied output "
            "head?), and every row would train; leave this table out with method.on(...)"
        )


@final
class RowEmbedding(nn.Embedding):
    """`nn.Embedding` whose rows train in a pool. A module becomes one by its class, as a packed layer does."""

    realloc_site: RowSite

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids ``[...]``."""
        return self.realloc_site.read(input)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The whole table as it is now, read-only: a new tensor at each read."""
        return self.realloc_site.weight()

    def reset_parameters(self) -> None:
        """Refuse: the rows live in the pool."""
        raise RuntimeError(f"{self.realloc_site.name}: detach() before resetting a table whose rows train in a pool")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.realloc_site.pool.sure()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.realloc_site.pool.whole()  # what a plain model loads
