"""The grid of units over a weight matrix: single weights, or blocks of r x c of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Grid:
    """A matrix ``[height, width]`` cut into units of ``r x c`` weights.

    A unit's *place* is ``row * columns + column``, counted in units.

    >>> grid = Grid(4, 6, r=2, c=3)
    >>> grid.rows, grid.columns, grid.units, grid.size
    (2, 2, 4, 6)
    >>> grid.elements(torch.tensor([1]))
    tensor([[ 3,  4,  5,  9, 10, 11]])
    """

    height: int
    width: int
    r: int = 1
    c: int = 1

    @property
    def rows(self) -> int:
        """Rows of units."""
        return self.height // self.r

    @property
    def columns(self) -> int:
        """Columns of units."""
        return self.width // self.c

    @property
    def units(self) -> int:
        """How many units there are in all."""
        return self.rows * self.columns

    @property
    def size(self) -> int:
        """Weights in one unit."""
        return self.r * self.c

    @property
    def whole_columns(self) -> bool:
        """Whether a unit is an input column: all the weights of one input of the layer."""
        return self.c == 1 and self.r == self.height > 1

    def elements(self, places: Tensor) -> Tensor:
        """Flat positions in the dense matrix, int64 ``[u, size]``, of the units at ``places`` int64 ``[u]``."""
        if self.size == 1:
            return places.unsqueeze(1)
        corner = (places // self.columns) * (self.r * self.width) + (places % self.columns) * self.c
        down = torch.arange(self.r, device=places.device) * self.width
        inside = (down[:, None] + torch.arange(self.c, device=places.device)).flatten()
        return corner[:, None] + inside[None, :]

    def fold(self, rows: Tensor) -> Tensor:
        """Cut dense rows ``[k * r, width]`` into ``[k * columns, size]``, in the order of places."""
        if self.size == 1:
            return rows.reshape(-1, 1)
        cut = rows.reshape(-1, self.r, self.columns, self.c).permute(0, 2, 1, 3)
        return cut.reshape(-1, self.size)

    def mask(self, places: Tensor) -> Tensor:
        """Bool ``[height, width]``, true where a unit of ``places`` lies."""
        flat = torch.zeros(self.height * self.width, dtype=torch.bool, device=places.device)
        flat[self.elements(places).flatten()] = True
        return flat.view(self.height, self.width)
