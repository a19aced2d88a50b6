"""What widths cost: an integer function of all of them, since a neuron's cost depends on its neighbours' widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, final

Currency = Literal["parameters", "FLOPs"]


@final
@dataclass(frozen=True)
class Axis:
    """One side of a parameter: ``block`` entries for each unit of a group, or so many in all where no group moves it.

    >>> Axis(0, 3).size([5]), Axis(None, 7).size([5])
    (15, 7)
    """

    group: int | None
    block: int

    def size(self, widths: Sequence[int]) -> int:
        """Entries at these widths."""
        return self.block if self.group is None else self.block * widths[self.group]


@final
@dataclass(frozen=True)
class Member:
    """A parameter whose shape follows widths: ``[rows, columns, *tail]``, or a vector ``[rows]``."""

    name: str
    rows: Axis
    columns: Axis | None = None
    tail: tuple[int, ...] = ()  # the kernel of a convolution
    positions: int = 1  # products that each entry takes part in, for one example; a vector's count for nothing
    fill: float = 0.0  # what a new entry of a vector starts with

    def shape(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Its shape at these widths."""
        inner = () if self.columns is None else (self.columns.size(widths), *self.tail)
        return (self.rows.size(widths), *inner)

    def parameters(self, widths: Sequence[int]) -> int:
        """Its entries."""
        return prod(self.shape(widths))

    def flops(self, widths: Sequence[int]) -> int:
        """Floating-point operations of one example's forward: two for each product."""
        return 0 if self.columns is None else 2 * self.positions * self.parameters(widths)


@final
@dataclass(frozen=True)
class Space:
    """The groups of coupled units of one model, and every parameter whose shape follows their widths.

    >>> space = Space(("hidden",), (1,), (64,), (Member("in", Axis(0, 1), Axis(None, 8)),
    ...                                          Member("bias", Axis(0, 1)), Member("out", Axis(None, 2), Axis(0, 1))))
    >>> space.cost([4]), space.cost([5]) - space.cost([4]), space.cost([4], "FLOPs")
    (44, 11, 80)
    """

    groups: tuple[str, ...]
    least: tuple[int, ...]  # fewest units of each
    most: tuple[int, ...]
    members: tuple[Member, ...]

    def cost(self, widths: Sequence[int], currency: Currency = "parameters") -> int:
        """What all members cost at these widths."""
        if currency == "FLOPs":
            return sum(member.flops(widths) for member in self.members)
        return sum(member.parameters(widths) for member in self.members)

    def marginal(self, widths: Sequence[int], group: int, currency: Currency = "parameters") -> int:
        """What one more unit of a group would cost."""
        more = list(widths)
        more[group] += 1
        touched = [m for m in self.members if group in (m.rows.group, m.columns.group if m.columns else None)]
        part = Space(self.groups, self.least, self.most, tuple(touched))
        return part.cost(more, currency) - part.cost(widths, currency)


@final
@dataclass(frozen=True)
class Purse:
    """What may be spent on widths: a budget, and the slots of each pool that must hold the members."""

    space: Space
    budget: int
    currency: Currency = "parameters"
    rooms: tuple[tuple[tuple[int, ...], int], ...] = ()  # members of each pool, by number, and its slots

    def pays(self, widths: Sequence[int]) -> bool:
        """Whether it pays for these widths."""
        members = self.space.members
        if self.space.cost(widths, self.currency) > self.budget:
            return False
        return all(sum(members[m].parameters(widths) for m in mine) <= slots for mine, slots in self.rooms)

    def price(self, widths: Sequence[int], group: int, step: int = 1) -> int:
        """What one more unit of a group would cost; with ``step=-1`` what one fewer saves. At least 1."""
        if step > 0:
            return max(1, self.space.marginal(widths, group, self.currency))
        fewer = list(widths)
        fewer[group] -= 1
        return max(1, self.space.marginal(fewer, group, self.currency))
