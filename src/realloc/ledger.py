"""The integer account. A plan that does not balance never touches a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from realloc.errors import StateError
from realloc.kernels.search import merge
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

    @property
    def places(self) -> Tensor:
        """The sorted places it holds."""


@final
@dataclass(frozen=True, eq=False)
class Held:
    """The account of a site, where nothing else is known of it."""

    name: str
    grid: Grid
    places: Tensor


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """What one site holds after a plan that balances."""

    places: Tensor  # int64, ascending
    source: Tensor  # int64, which unit of its pool each was before, -1 for an acquired one


def check(plan: Plan, accounts: Sequence[Account], capacity: int) -> dict[str, Entry]:
    """Refuse a plan that would create, lose or double a unit, or that does not fit ``capacity`` slots.

    Args:
        plan: whose sites are all among the accounts.
        accounts: every site of one pool, in its order.
        capacity: slots of the pool; a unit of a site costs its grid's ``size``.

    Returns:
        The entry of each site: what `apply` needs, and gets nowhere else.

    Raises:
        StateError: always a defect of the method that made the plan, named by site.
    """
    changes = {change.site: change for change in plan.changes}
    if len(changes) < len(plan.changes):
        raise StateError(f"plan at step {plan.step} names a site twice; give each site one change")
    strange = next(iter(changes.keys() - {account.name for account in accounts}), None)
    if strange is not None:
        raise StateError(f"plan at step {plan.step} names {strange!r}, which is no site of this pool")
    entries, first = {}, 0
    for account in accounts:
        entries[account.name] = _entry(account, changes.get(account.name), first)
        first += account.places.numel()
    after = sum(entries[account.name].places.numel() * account.grid.size for account in accounts)
    if after > capacity:
        raise StateError(f"plan at step {plan.step} holds {after} slots, the budget is {capacity}")
    return entries


def _entry(account: Account, change: Change | None, first: int) -> Entry:
    held = account.places
    if change is None:
        return Entry(held, torch.arange(first, first + held.numel(), device=held.device))
    for word, places in (("released", change.released), ("acquired", change.acquired)):
        if places.numel() and (int(places[0]) < 0 or int(places[-1]) >= account.grid.units):
            raise StateError(f"{change.site}: a {word} place lies outside the grid of {account.grid.units} units")
    try:
        entry = Entry(*merge(held, change.released, change.acquired, first))
    except StateError as error:
        raise StateError(_complaint(change, held)) from error
    if change.before != held.numel() or change.after != entry.places.numel():
        raise StateError(f"{change.site}: counts before and after do not match the units named")
    return entry


def _complaint(change: Change, held: Tensor) -> str:
    """What is wrong with a change that cannot be made."""
    for word, places in (("released", change.released), ("acquired", change.acquired)):
        if bool((places[1:] <= places[:-1]).any()):
            return f"{change.site}: {word} places are not sorted, or one is named twice"
    if not bool(among(change.released, held).all()):
        return f"{change.site}: releases a unit that it does not hold"
    return f"{change.site}: acquires a unit that it already holds"
