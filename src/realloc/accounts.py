"""What all methods of one model hold together: one account for each currency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from torch import nn

from realloc.nn.factored import Factored
from realloc.nn.rows import Rows
from realloc.pool.found import everywhere, root_of
from realloc.pool.rows import pools_of

SAME: Final = {"weights": "parameters"}  # a weight is a parameter: what both are counted in


@final
@dataclass(frozen=True)
class Account:
    """A budget and what of it is held; the rest is parked. Counted in ``currency``."""

    currency: str
    budget: int
    held: int

    @property
    def parked(self) -> int:
        """What is left of the budget."""
        return self.budget - self.held


def accounts(model: nn.Module) -> tuple[Account, ...]:
    """Add up what the methods that are attached to a model, or were prepared on it, may hold and hold.

    Args:
        model: any module, wrapped or not.

    Returns:
        One account for each currency, in the order in which they first occur: "parameters" (weights, ranks, widths,
        rows of `methods.touched_rows`), "FLOPs" of one example's forward, "bytes" (rows of `realloc.nn.Embedding`,
        `DoubleHashing` and `QuotientRemainder`, their moments and the sketch).

    Example:
        >>> import torch, realloc
        >>> from realloc import methods
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> _ = realloc.prepare(model, methods.rigl(density=0.25).on("0"))
        >>> _ = realloc.prepare(model, methods.static(density=0.5).on("2"))
        >>> realloc.accounts(model)
        (Account(currency='parameters', budget=48, held=48),)
    """
    found: dict[str, Account] = {}

    def add(currency: str, budget: int, held: int) -> None:
        known = found.get(currency, Account(currency, 0, 0))
        found[currency] = Account(currency, known.budget + budget, known.held + held)

    for _, holdings in everywhere(model):
        add(SAME.get(holdings.currency, holdings.currency), holdings.budget, holdings.held)
    for module in root_of(model).modules():
        if isinstance(module, Rows | Factored):
            add("bytes", module.budget, module.held)
    for pool in pools_of(root_of(model)):
        width = pool.parameter.shape[1]
        add("parameters", pool.capacity * width, pool.held * width)
    return tuple(found.values())
