"""Released units go where the gradient keeps pointing."""

from __future__ import annotations

from collections.abc import Sequence

from realloc.allocate.room import Room
from realloc.allocate.spread import spread


def momentum_share(rooms: Sequence[Room], budget: int) -> tuple[int, ...]:
    """Share the released units in proportion to each site's evidence, the mean ``|momentum|`` of its held weights.

    ``budget`` is the number of units to hand out, ``most`` the free places of a site. What a full site cannot take is
    shared again; when all evidence is zero, the shares are even.

    Reference: SNFS (1907.04840, section 3.2). Where we differ: the shares are exact and bounded by the free places;
    the authors round per layer, cap at 99 % and loop over the remainder.

    >>> momentum_share([Room("a", (4, 4), 0, 8, evidence=3.0), Room("b", (4, 4), 0, 16, evidence=1.0)], 12)
    (8, 4)
    """
    return spread([room.evidence for room in rooms], rooms, budget)
