"""`nn.EmbeddingBag` with a budget of rows: sums, means or maxima over bags of ids."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError
from realloc.nn.rows import Rows
from realloc.nn.table import Table

Mode = Literal["sum", "mean", "max"]


@final
class EmbeddingBag(Table):
    """One row for each bag of ids, in a fixed number of bytes.

    Args:
        num_ids: ids of the full table, or None: an open vocabulary.
        dim: numbers in a row.
        rows: the budget, see `Embedding`.
        mode: "sum", "mean" or "max".
        include_last_offset: offsets end with the number of ids.
        padding_idx: an id that no bag counts.
        own: part of the rows that ids may own; 0: the same bytes as hashing.
        directions: see `Rows`; the score "conflict" needs them.

    Shapes: ids ``[bags, n]``, or ``[n]`` with offsets ``[bags]``; output ``[bags, dim]``. An empty bag is zero.

    Raises:
        ConfigError: a number or mode out of range; in `forward`, negative ids, or offsets that are missing or surplus.

    Source: as `Embedding`. While scores are collected, the rows of a batch are looked up one by one before they are
    reduced, so that each id's gradient is seen in every mode; else torch's own kernel does both at once.

    >>> _ = torch.manual_seed(0)
    >>> bag = EmbeddingBag(1000, 4, rows=100, mode="sum", padding_idx=0)
    >>> bag(torch.tensor([[5, 7, 0], [0, 0, 0]]))[1]
    tensor([0., 0., 0., 0.], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        num_ids: int | None,
        dim: int,
        rows: int | str | Rows,
        *,
        mode: Mode = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        own: float | None = None,
        directions: int | None = None,
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ConfigError(f"mode is {mode!r}; use 'sum', 'mean' or 'max'")
        super().__init__(num_ids, dim, rows, padding_idx, own, directions)
        self.mode: Mode = mode
        self.include_last_offset = include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Reduce bags of ids; ``per_sample_weights`` of the ids' shape, in mode "sum"."""
        if per_sample_weights is not None and self.mode != "sum":
            raise ConfigError(f"per_sample_weights are for mode='sum', and this bag's is {self.mode!r}")
        starts = self._starts(input, offsets)
        ids = input.reshape(-1)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        if self.padding_idx is not None:
            counted = ids != self.padding_idx
            before = torch.cat([starts.new_zeros(1), counted.cumsum(0)])
            ids, starts = ids[counted], before[starts]
            weights = None if weights is None else weights[counted]
        store = self.store
        if store.listener is None or not ids.numel() or not torch.is_grad_enabled():
            return _reduce(store.rows_of(self.table, ids), store.weight, starts, self.mode, weights, store.sparse)
        rows = store.look_up(self.table, ids)
        return _reduce(torch.arange(len(ids), device=ids.device), rows, starts, self.mode, weights, False)

    def _starts(self, ids: Tensor, offsets: Tensor | None) -> Tensor:
        """int64 ``[bags]``: where each bag begins among the flat ids."""
        if ids.dim() == 2 and offsets is None:
            return torch.arange(ids.shape[0], device=ids.device) * ids.shape[1]
        if ids.dim() != 1 or offsets is None:
            raise ConfigError(
                f"ids have shape {tuple(ids.shape)} {'without' if offsets is None else 'with'} offsets; pass "
                "[bags, n] without, or [n] with offsets [bags]"
            )
        found = offsets.long()
        found = found[:-1] if self.include_last_offset else found
        if found.numel() and (int(found[0]) or int(found[-1]) > len(ids) or bool((found[1:] < found[:-1]).any())):
            raise ConfigError(f"offsets must begin at 0, ascend, and end at no more than the {len(ids)} ids")
        return found

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        return f"{self.num_ids}, {self.dim}, mode={self.mode}"


def _reduce(places: Tensor, rows: Tensor, starts: Tensor, mode: Mode, weights: Tensor | None, sparse: bool) -> Tensor:
    found: Tensor = nn.functional.embedding_bag(
        places, rows, starts, mode=mode, sparse=sparse and mode != "max", per_sample_weights=weights
    )
    return found
