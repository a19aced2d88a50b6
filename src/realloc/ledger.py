"""The integer account. A plan that does not balance never touches a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from realloc.errors import StateError
from realloc.plan import Change, Plan
from realloc.sites.grid import Grid
from realloc.sites.places import among


class Account(Protocol):
    """What the ledger must know of a site."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def grid(self) -> Grid:
        """Its units."""

    def places(self) -> Tensor:
        """The sorted places it holds."""


def check(plan: Plan, accounts: Sequence[Account], capacity: int) -> None:
    """Refuse a plan that would create, lose or double a unit, or that does not fit ``capacity`` units.

    Raises:
        StateError: always a defect of the method that made the plan, named by site.
    """
    by_name: Mapping[str, Account] = {a.name: a for a in accounts}
    after = sum(a.places().numel() for a in accounts)
    if len({change.site for change in plan.changes}) < len(plan.changes):
        raise StateError(f"plan at step {plan.step} names a site twice; give each site one change")
    for change in plan.changes:
        if change.site not in by_name:
            raise StateError(f"plan at step {plan.step} names {change.site!r}, which is no site of this pool")
        _check_change(change, by_name[change.site])
        after += change.acquired.numel() - change.released.numel()
    if after > capacity:
        raise StateError(f"plan at step {plan.step} holds {after} units, the budget is {capacity}")


def _check_change(change: Change, account: Account) -> None:
    held = account.places()
    for word, places in (("released", change.released), ("acquired", change.acquired)):
        if places.numel() and (int(places[0]) < 0 or int(places[-1]) >= account.grid.units):
            raise StateError(f"{change.site}: a {word} place lies outside the grid of {account.grid.units} units")
        if bool((places[1:] <= places[:-1]).any()):
            raise StateError(f"{change.site}: {word} places are not sorted, or one is named twice")
    if not bool(among(change.released, held).all()):
        raise StateError(f"{change.site}: releases a unit that it does not hold")
    if bool(among(change.acquired, held).any()):
        raise StateError(f"{change.site}: acquires a unit that it already holds")
    if change.before != held.numel() or change.after != change.before - len(change.released) + len(change.acquired):
        raise StateError(f"{change.site}: counts before and after do not match the units named")
