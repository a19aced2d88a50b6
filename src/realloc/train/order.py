"""The order in which rows are seen: a function of (seed, step), so that a resume has nothing to restore."""

from __future__ import annotations

from typing import Protocol, final

import torch
from torch import Tensor

from realloc.rng import stream
from realloc.train.dataset import Inputs, Rows


class Order(Protocol):
    """What gives the loop its batches."""

    def at(self, step: int) -> tuple[Inputs, Tensor]:
        """The batch of a step."""


@final
class Batches:
    """Shuffled batches of a data set, by step number; the last batch of an epoch may be smaller, none is dropped."""

    def __init__(self, rows: Rows, size: int, seed: int) -> None:
        self._rows, self._size, self._seed = rows, size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)
        self.per_epoch = -(-len(rows.y) // size)

    def at(self, step: int) -> tuple[Inputs, Tensor]:
        """Return the batch of a step; the first step is 0."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = stream(self._seed, "order", "", epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self._rows.y), generator=generator)
        chosen = self._order[place * self._size : (place + 1) * self._size]
        return self._rows.at(chosen)
