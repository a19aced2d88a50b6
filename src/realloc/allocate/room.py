"""What an allocator knows of a site."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from realloc.errors import ConfigError, ReallocError, plain


@final
@dataclass(frozen=True)
class Room:
    """One site that may receive units; every count is in units.

    ``least`` and ``most`` bound what the allocator may give. When a whole budget is placed they bound the units held;
    when released units are handed out again they bound the units acquired.

    Raises:
        ConfigError: bounds that contradict each other or the grid.
    """

    name: str
    grid: tuple[int, int]
    least: int
    most: int
    evidence: float = 0.0
    """What speaks for the site, for instance its mean momentum; not negative."""
    released: int = 0
    """Units that the site released in this decision."""
    shape: tuple[int, ...] = ()
    """Shape of the weight where it is no matrix, such as ``(out, in, height, width)``; used by `erk`."""

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most <= self.size:
            raise ConfigError(
                f"site {plain(self.name)!r}: least={self.least} and most={self.most} do not fit "
                f"{self.size} units; keep 0 <= least <= most <= {self.size}"
            )

    @property
    def size(self) -> int:
        """Units of the full grid."""
        return self.grid[0] * self.grid[1]


Allocator = Callable[[Sequence[Room], int], tuple[int, ...]]
"""Units per room, in order: they sum to the budget exactly, each within least and most."""


def allot(allocator: Allocator, rooms: Sequence[Room], budget: int, part: str, error: type[ReallocError]) -> list[int]:
    """Ask an allocator, and trust it with nothing.

    Args:
        allocator: whom to ask.
        rooms: the sites.
        budget: units to be placed in all.
        part: what it is to the method, for the message.
        error: what to raise.

    >>> allot(lambda rooms, budget: (budget,), [Room("fc", (2, 2), 0, 4)], 3, "share", ConfigError)
    [3]
    """
    counts = allocator(rooms, budget)
    try:
        found = [operator.index(count) for count in counts]
    except TypeError:
        raise error(f"{part} gave {counts!r}, which are no integers; return one int for each site") from None
    if (
        len(found) != len(rooms)
        or sum(found) != budget
        or any(not room.least <= count <= room.most for count, room in zip(found, rooms, strict=True))
    ):
        raise error(
            f"{part} gave {found} for {budget} units; return counts that sum to it, "
            f"each from {[room.least for room in rooms]} to {[room.most for room in rooms]}"
        )
    return found
