"""The same density everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from realloc.allocate.room import Room
from realloc.allocate.spread import spread


def uniform(rooms: Sequence[Room], budget: int) -> tuple[int, ...]:
    """Give each site units in proportion to its size, so that all have one density.

    Reference: the uniform distribution of RigL (1911.11134, section 3). Where we differ: which layers stay dense is
    decided before, by which layers are named; the authors keep the first one dense.

    >>> uniform([Room("a", (10, 10), 0, 100), Room("b", (10, 30), 0, 300)], 40)
    (10, 30)
    """
    return spread([room.size for room in rooms], rooms, budget)
