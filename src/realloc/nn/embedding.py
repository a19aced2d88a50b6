"""`nn.Embedding` with a budget of rows: hot ids own one, the others share hashed rows."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError
from realloc.nn.rows import Rows
from realloc.nn.table import Table


@final
class Embedding(Table):
    """A look-up table for any number of ids in a fixed number of bytes.

    Args:
        num_ids: ids of the full table, for "10%" and for the check of the budget; None: an open vocabulary. Ids from
            ``num_ids`` on are looked up like any other new id.
        dim: numbers in a row.
        rows: the budget: an integer, a part of the full table such as "10%", bytes such as "200kB", or a `Rows` that
            tables share.
        padding_idx: an id that reads zeros and never trains.
        own: part of the rows that ids may own; 0: the same bytes as hashing.
        directions: see `Rows`; the score "conflict" needs them.

    Shapes: ids ``[...]``, int64 or int32, 0 to 2^63 - 1; output ``[..., dim]``.

    Raises:
        ConfigError: a number out of range, or a budget that does not fit; in `forward`, negative ids.

    Source: CAFE (2312.03256); see `Rows` for what differs. Unlike `nn.Embedding`, ``weight`` has a row for each row of
    the budget, not for each id, ``padding_idx`` is given by name, and ``max_norm`` and ``scale_grad_by_freq`` are not
    known.

    >>> _ = torch.manual_seed(0)
    >>> layer = Embedding(100_000, 16, rows="1%")
    >>> layer(torch.tensor([[3, 99_999], [2**62, 3]])).shape, layer.weight.shape
    (torch.Size([2, 2, 16]), torch.Size([880, 16]))
    """

    def __init__(
        self,
        num_ids: int | None,
        dim: int,
        rows: int | str | Rows,
        *,
        padding_idx: int | None = None,
        own: float | None = None,
        directions: int | None = None,
    ) -> None:
        super().__init__(num_ids, dim, rows, padding_idx, own, directions)

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids ``[...]``."""
        return self.store.look_up(self.table, input, self.padding_idx)

    @torch.no_grad()
    def plain(self) -> nn.Embedding:
        """A plain `nn.Embedding` that says the same of each id below ``num_ids``.

        Raises:
            ConfigError: an open vocabulary has no such table.
        """
        if self.num_ids is None:
            raise ConfigError("num_ids is None: an open vocabulary has no full table; look up the ids that you need")
        ids = torch.arange(self.num_ids, device=self.weight.device)
        table = self.weight[self.store.rows_of(self.table, ids)].clone()
        if self.padding_idx is not None:
            table[self.padding_idx] = 0
        return nn.Embedding(self.num_ids, self.dim, padding_idx=self.padding_idx, _weight=table)

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_ids}, {self.dim}{padding}"
