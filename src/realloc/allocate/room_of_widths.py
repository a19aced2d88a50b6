"""Which widths a move ends with: two ways to hand out what is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from realloc.allocate.width_costs import Purse
from realloc.allocate.widths import scaled, widen


@final
@dataclass(frozen=True)
class WidthRoom:
    """What there is to share: widths after the release, and the gains of further units of each group."""

    purse: Purse
    widths: tuple[int, ...]
    gains: tuple[Sequence[float], ...]  # not rising; as many as may come


Allot = Callable[[WidthRoom], tuple[int, ...]]


def by_gain(room: WidthRoom) -> tuple[int, ...]:
    """The unit of highest gain per cost comes next, as long as the budget pays."""
    return widen(room.purse, room.widths, room.gains)


def in_proportion(room: WidthRoom) -> tuple[int, ...]:
    """One factor widens all groups that may grow, so that the widths which stayed keep their proportions."""
    most = tuple(n + len(gains) for n, gains in zip(room.widths, room.gains, strict=True))
    return scaled(replace(room.purse, space=replace(room.purse.space, most=most)), room.widths, room.widths)
