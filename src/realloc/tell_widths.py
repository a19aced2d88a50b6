"""Words on widths, for `summary` and `explain` of a handle: the groups, and what moved in each."""

from __future__ import annotations

from collections.abc import Iterable

from realloc.decider import Recipe
from realloc.errors import ConfigError, nearest, plain
from realloc.methods.width_method import WidthMethod
from realloc.plan import Note
from realloc.pool.widths import WidePool


def table(pool: WidePool) -> list[str]:
    """One line for each group: its width now and at the start, and its bounds. ``pool``: any of a space."""
    space, wide = pool.space, max(len(plain(name)) for name in pool.space.groups)
    rows = zip(space.groups, pool.widths, pool.start, space.least, space.most, strict=True)
    return [
        f"  {plain(name):<{wide}} {now:>8,} units, {start:,} at the start ({now - start:+,}); {least:,} to {most:,}"
        for name, now, start, least, most in rows
    ]


def released(pool: WidePool) -> int:
    """What the groups cost less than at the start, in the currency of the budget."""
    space = pool.space
    return space.cost(pool.start, pool.currency) - space.cost(pool.widths, pool.currency)


def groups_named(pool: WidePool, name: str) -> list[int]:
    """The groups of that name, with a layer of that name, or that a parameter of that name follows.

    Raises:
        ConfigError: there is none; the nearest names are given.
    """
    space = pool.space
    found = [g for g, group in enumerate(space.groups) if name == group or name in group.split("+")]
    if not found:
        members = [member for member in space.members if member.name in (name, f"{name}.weight")]
        found = sorted({group for member in members for group in member.groups})
    if not found:
        known = [*space.groups, *(member.name for member in space.members)]
        close = nearest(name, known) or "; there are " + ", ".join(repr(plain(group)) for group in space.groups[:5])
        raise ConfigError(f"no hidden dimension and no site {plain(name)!r}{close}")
    return found


def explained(pool: WidePool, group: int, method: Recipe, notes: Iterable[Note], due: int | None) -> list[str]:
    """Why a group gained or lost units in the moves of this session."""
    space, name, keep, want = pool.space, pool.space.groups[group], method.keep, method.want
    price = space.marginal(pool.widths, group, pool.currency)
    lines = [
        f"{plain(name)}: {pool.widths[group]:,} units, {pool.start[group]:,} at the start, {space.least[group]:,} to "
        f"{space.most[group]:,}; one more costs {price:,} {pool.currency}"
    ]
    if keep is not None and method.moves:
        gain = f", acquired by highest {want.name}" if want is not None else " as the budget falls"
        if isinstance(method, WidthMethod) and method.within:
            gain = ", and as many start anew"
        lines.append(f"  released by lowest {keep.name}{gain}")
    mine = [note for note in notes if note.site == name]
    for note in mine:
        if not (note.released or note.acquired):
            lines.append(f"  step {note.step}: nothing moved: {_why_not(method, note.step)}")
            continue
        known = keep is not None and note.keep_threshold is not None
        gone = f", {keep.name} up to {note.keep_threshold:.3g} went" if keep is not None and known else ""
        jump = "" if note.jump is None else f"; the weights behind jumped by {note.jump:.3g}"
        counts = f"(-{note.released:,} +{note.acquired:,}{gone})"
        lines.append(f"  step {note.step}: {note.before:,} -> {note.after:,} units {counts}{jump}")
    if not mine:
        lines.append("  no move yet; " + ("none is due" if due is None else f"the next one is due at step {due}"))
    return lines


def _why_not(method: Recipe, step: int) -> str:
    """Why nothing of a group moved. Of layers that took no part in the step nothing is known, so nothing goes."""
    if not isinstance(method, WidthMethod):
        return "no unit was cheap enough to go, and none paid to come"
    if step < method.mature:  # those of the start came at step 0
        return f"every unit was younger than mature={method.mature} steps; in a short run give fewer"
    old = f" of {method.mature:,} steps or more" if method.mature else ""
    if not method.within:
        return f"no unit{old} was cheap enough to go, and none paid to come"
    if method.threshold is not None:
        return f"no unit{old} was at or below {method.threshold:g}, or its layers took no part in the step"
    return f"a share of its units{old} came to less than one (fractions add up), or its layers took no part in the step"
