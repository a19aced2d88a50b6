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

    def cost(self, widths: Sequence[int], currency: Currency) -> int:
        """What it costs."""
        return self.flops(widths) if currency == "FLOPs" else self.parameters(widths)

    @property
    def groups(self) -> set[int]:
        """The groups whose widths it follows."""
        both = (self.rows.group, None if self.columns is None else self.columns.group)
        return {group for group in both if group is not None}


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
    levels: tuple[float | None, ...] = ()  # of each, see `Neurons.level`
    behind: tuple[tuple[str, str], ...] = ()  # weights without a bias, and the norm right behind each

    def cost(self, widths: Sequence[int], currency: Currency = "parameters") -> int:
        """What all members cost at these widths."""
        return sum(member.cost(widths, currency) for member in self.members)

    def marginal(self, widths: Sequence[int], group: int, currency: Currency = "parameters") -> int:
        """What one more unit of a group would cost."""
        more = list(widths)
        more[group] += 1
        touched = [member for member in self.members if group in member.groups]
        return sum(member.cost(more, currency) - member.cost(widths, currency) for member in touched)


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


@final
class Tally:
    """Widths that change one unit at a time, and what they cost; only what a unit touches is counted anew.

    >>> space = Space(("a", "b"), (1, 1), (9, 9), (Member("w", Axis(1, 1), Axis(0, 1)),))
    >>> tally = Tally(Purse(space, 7), [2, 3])
    >>> tally.price(0), tally.affords(0), tally.price(1, -1)
    (3, False, 2)
    """

    def __init__(self, purse: Purse, widths: Sequence[int]) -> None:
        members = purse.space.members
        self.purse = purse
        self.widths = list(widths)
        self._cost = purse.space.cost(widths, purse.currency)
        self._slots = [sum(members[m].parameters(widths) for m in mine) for mine, _ in purse.rooms]
        room = {m: number for number, (mine, _) in enumerate(purse.rooms) for m in mine}
        self._touched: list[list[tuple[Member, int | None]]] = [[] for _ in purse.space.groups]
        self._near: list[set[int]] = [{g} for g in range(len(purse.space.groups))]  # whose prices a group's width sets
        for number, member in enumerate(members):
            for group in member.groups:
                self._touched[group].append((member, room.get(number)))
                self._near[group] |= member.groups
        self._known: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}

    @property
    def pays(self) -> bool:
        """Whether the purse pays for the widths of now."""
        slots = zip(self._slots, self.purse.rooms, strict=True)
        return self._cost <= self.purse.budget and all(mine <= most for mine, (_, most) in slots)

    def price(self, group: int, step: int = 1) -> int:
        """What one more unit of a group costs; with ``step=-1`` what one fewer saves. At least 1."""
        return max(1, step * self._change(group, step)[0])

    def affords(self, group: int) -> bool:
        """Whether the purse pays for one more unit of a group."""
        more, slots = self._change(group, 1)
        rooms = zip(self._slots, slots, self.purse.rooms, strict=True)
        return self._cost + more <= self.purse.budget and all(mine + new <= most for mine, new, (_, most) in rooms)

    def add(self, group: int, step: int) -> None:
        """One more unit of a group, or with ``step=-1`` one fewer."""
        more, slots = self._change(group, step)
        self.widths[group] += step
        self._cost += more
        self._slots = [mine + new for mine, new in zip(self._slots, slots, strict=True)]
        for near in self._near[group]:
            self._known.pop((near, 1), None)
            self._known.pop((near, -1), None)

    def _change(self, group: int, step: int) -> tuple[int, tuple[int, ...]]:
        """By how much the cost and the slots of each room change."""
        known = self._known.get((group, step))
        if known is None:
            after, cost, slots = list(self.widths), 0, [0] * len(self.purse.rooms)
            after[group] += step
            for member, room in self._touched[group]:
                cost += member.cost(after, self.purse.currency) - member.cost(self.widths, self.purse.currency)
                if room is not None:
                    slots[room] += member.parameters(after) - member.parameters(self.widths)
            known = self._known[group, step] = cost, tuple(slots)
        return known
