"""A budget and what became of it, in its own currency: one function for each kind of unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from torch import nn

from realloc.handle import Handle
from realloc.hot_row_handle import HotRowHandle
from realloc.nn.double_hashing import DoubleHashing
from realloc.nn.rows import Rows
from realloc.rate_handle import RateHandle
from realloc.visits import Visits

AnyHandle = Handle | RateHandle | HotRowHandle


@final
@dataclass(frozen=True)
class Spent:
    """A budget and what was done with it, counted in ``currency``; None: there is none."""

    currency: str | None = None
    budget: int | None = None
    held: int | None = None
    parked: int | None = None
    moves: int | None = None
    units_moved: int | None = None
    weights: int | None = None  # numbers that sites hold, whatever the budget counts


def of_sites(handle: Handle) -> Spent:
    """Weights, alone or in columns; where widths move, parameters or FLOPs."""
    weights = sum(site.held for site in handle.sites.values())
    return Spent(
        handle.currency, handle.budget, handle.held, handle.parked, handle.moves, handle.units_moved, weights
    )  # fmt: skip


def of_rates(handle: RateHandle) -> Spent:
    """Shares of learning rate."""
    return Spent("millionths of rate", handle.budget, handle.held, handle.parked, handle.moves)


def of_rows(handle: HotRowHandle) -> Spent:
    """Embedding rows that ids own: bytes; a unit is a row."""
    return Spent("bytes", handle.budget, handle.held, handle.parked, handle.moves, handle.promoted_rows)


ACCOUNTS: Final[Mapping[type, Callable[[Any], Spent]]] = {
    Handle: of_sites, RateHandle: of_rates, HotRowHandle: of_rows,
}  # fmt: skip


def of_handle(handle: AnyHandle) -> Spent:
    """The account of what `attach` returned."""
    return ACCOUNTS[type(handle)](handle)


def of_visits(visits: Visits) -> Spent:
    """Visits of examples."""
    return Spent("visits", visits.budget, visits.spent, visits.parked)


def of_stores(model: nn.Module) -> Spent:
    """Rows that ids share and none owns: bytes, held from the start; nothing where a model has no such rows."""
    stores = [module for module in model.modules() if isinstance(module, Rows | DoubleHashing)]
    if not stores:
        return Spent()
    budget, held = sum(store.budget for store in stores), sum(store.held for store in stores)
    return Spent("bytes", budget, held, budget - held)
