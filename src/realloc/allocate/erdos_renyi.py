"""More density for small layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from realloc.allocate.room import Room
from realloc.allocate.spread import spread


def erdos_renyi(rooms: Sequence[Room], budget: int) -> tuple[int, ...]:
    """Give each site a density in proportion to ``(rows + columns) / (rows * columns)``.

    A site that would pass density 1 becomes dense, and the rest is solved again, so the total is exact.

    Reference: SET (1707.04780, eq. 3); RigL (1911.11134, section 3). Where we differ: rows and columns are counted in
    units, so with blocks the ratio is that of the block grid.

    >>> erdos_renyi([Room("wide", (100, 100), 0, 10_000), Room("head", (10, 100), 0, 1_000)], 620)
    (400, 220)
    """
    return spread([sum(room.grid) for room in rooms], rooms, budget)


def erk(rooms: Sequence[Room], budget: int) -> tuple[int, ...]:
    """Erdos-Renyi-kernel: density in proportion to ``sum(shape) / prod(shape)``, so a convolution counts its kernel.

    Where a room's units are not single weights, or it names no shape, its grid counts, as in `erdos_renyi`.

    Reference: RigL (1911.11134, section 3, ERK), power scale 1.

    >>> conv, fc = Room("conv", (8, 36), 0, 288, shape=(8, 4, 3, 3)), Room("fc", (10, 50), 0, 500)
    >>> erk([conv, fc], 78)
    (18, 60)
    """
    shapes = [room.shape if math.prod(room.shape) == room.size and room.shape else room.grid for room in rooms]
    return spread([sum(shape) for shape in shapes], rooms, budget)
