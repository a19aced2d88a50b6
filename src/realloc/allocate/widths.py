"""Sharing a budget among widths, whose cost is a function of them all: exact integers, never above the budget."""

from __future__ import annotations

from collections.abc import Sequence

from realloc.allocate.width_costs import Purse, Tally


def narrow(purse: Purse, widths: Sequence[int], worth: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """How many units of each group stay: those of lowest worth per cost go, until a purse pays for the rest.

    Args:
        purse: what may be spent.
        widths: units held.
        worth: for each group, the worth of the units that may go, lowest first.

    >>> from realloc.allocate.width_costs import Axis, Member, Space
    >>> a, b = Member("a", Axis(0, 1), Axis(None, 2)), Member("b", Axis(1, 2), Axis(None, 2))
    >>> purse = Purse(Space(("a", "b"), (1, 1), (9, 9), (a, b)), 12)
    >>> narrow(purse, [3, 3], [[1.0, 5.0, 9.0], [1.0, 3.0, 9.0]])
    (2, 2)
    """
    left, gone = Tally(purse, widths), [0] * len(widths)
    while not left.pays:
        going = [
            (worth[g][gone[g]] / left.price(g, -1), g)
            for g in range(len(gone))
            if gone[g] < len(worth[g]) and left.widths[g] > purse.space.least[g]
        ]
        if not going:
            break
        group = min(going)[1]
        left.add(group, -1)
        gone[group] += 1
    return tuple(left.widths)


def widen(purse: Purse, widths: Sequence[int], gains: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """How many units each group holds after those of highest gain per cost came, as long as a purse pays.

    Args:
        purse: what may be spent in all.
        widths: units held.
        gains: for each group, the gain of its first, second... new unit, not rising.

    Returns:
        Widths beside which the purse pays for no further unit that has a gain.

    >>> from realloc.allocate.width_costs import Axis, Member, Space
    >>> a, b = Member("a", Axis(0, 1), Axis(None, 2)), Member("b", Axis(1, 2), Axis(None, 2))
    >>> widen(Purse(Space(("a", "b"), (1, 1), (9, 9), (a, b)), 13), [1, 1], [[3.0, 1.0], [5.0, 4.0]])
    (2, 2)
    """
    now, come, closed = Tally(purse, widths), [0] * len(widths), set[int]()
    while True:
        best: tuple[float, int] | None = None
        for g in range(len(come)):
            if g in closed or come[g] >= len(gains[g]) or now.widths[g] >= purse.space.most[g]:
                continue
            if not now.affords(g):
                closed.add(g)  # prices only rise as neighbours widen
                continue
            gain = gains[g][come[g]] / now.price(g)
            if best is None or gain > best[0]:
                best = gain, g
        if best is None:
            return tuple(now.widths)
        now.add(best[1], 1)
        come[best[1]] += 1


def scaled(purse: Purse, widths: Sequence[int], shape: Sequence[float]) -> tuple[int, ...]:
    """The widest ``f * shape`` that a purse pays for, at least ``widths`` each; what is left goes unit by unit.

    MorphNet's step 3 (1711.06798, section 3): one factor widens all groups, so their proportions stay. Where we differ:
    the factor is found exactly, and the rest is handed out to the groups that rounding cost most. Where a purse does
    not pay for ``widths``, they stay.

    >>> from realloc.allocate.width_costs import Axis, Member, Space
    >>> a, b = Member("a", Axis(0, 1), Axis(None, 1)), Member("b", Axis(1, 1), Axis(None, 1))
    >>> scaled(Purse(Space(("a", "b"), (1, 1), (99, 99), (a, b)), 10), [1, 2], [1, 2])
    (3, 7)
    """
    most = purse.space.most
    if not purse.pays(widths):
        return tuple(widths)

    def at(factor: float) -> list[int]:
        return [max(n, min(top, int(factor * part))) for n, part, top in zip(widths, shape, most, strict=True)]

    low, high = 0.0, 1.0
    while purse.pays(at(high)) and at(high) != at(2 * high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if purse.pays(at(middle)) else (low, middle)
    base = at(low)
    lacks = [part * high - n for n, part in zip(base, shape, strict=True)]
    lead = [[max(0.0, lack) + 1e-9] + [0.0] * top for lack, top in zip(lacks, most, strict=True)]
    tally = Tally(purse, base)
    priced = [[one * tally.price(g) for one in mine] for g, mine in enumerate(lead)]  # by lack, not by cost
    return widen(purse, base, priced)
