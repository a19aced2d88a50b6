"""Each site gets back what it released."""

from __future__ import annotations

from collections.abc import Sequence

from realloc.allocate.room import Room
from realloc.allocate.spread import spread


def same_layer(rooms: Sequence[Room], budget: int) -> tuple[int, ...]:
    """Give each site the units it released itself, so that no layer's density changes.

    ``budget`` is the number of units to hand out. Where it differs from what was released (a density that falls), or a
    site has no place left, the rest is shared in proportion to what each released.

    Reference: SET (1707.04780) and RigL (1911.11134), which never move units across layers.

    >>> same_layer([Room("a", (4, 4), 0, 16, released=5), Room("b", (4, 4), 0, 16, released=2)], 7)
    (5, 2)
    """
    return spread([room.released for room in rooms], rooms, budget)
