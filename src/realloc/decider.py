"""The seam between the engine and a kind of pool: what the engine asks of whoever decides about the pools of a model.

A new kind of unit with slots writes one `Decider` and one line in `attach_slots.DECIDERS`; the engine stays as it is.
The engine keeps the order of a step, `apply` writes; a decider reads, and what a resume needs it keeps in buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, final

from realloc.ledger import Entry
from realloc.plan import Plan
from realloc.schedule import Schedule


class Named(Protocol):
    """A score, by its name."""

    @property
    def name(self) -> str:
        """Its name."""


class Recipe(Protocol):
    """What the engine and its handle read of a method, whatever its kind."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def moves(self) -> bool:
        """Whether it can ever move a unit."""

    @property
    def looks(self) -> bool:
        """Whether a decision asks for what only a backward shows."""

    @property
    def falls(self) -> bool:
        """Whether its last decision is owed: only with it is what is held what was promised."""

    @property
    def young(self) -> int:
        """Steps over which the update of a new slot is damped; 0: never."""

    @property
    def keep(self) -> Named | None:
        """What is released is the lowest by this score; None: by none."""

    @property
    def want(self) -> Named | None:
        """What is acquired is the highest by this score; None: nothing is."""


@final
@dataclass(frozen=True, eq=False)
class Proposal:
    """A plan for one account, of one pool or several, and the ledger's check of it.

    The engine lets the ranks agree on the plan first; ``check`` then gets rank 0's. It refuses a plan that does not
    balance, and returns the entry of every site of the account, moved or not: all that `apply` gets.
    """

    plan: Plan
    check: Callable[[Plan], dict[str, Entry]]


class Decider(Protocol):
    """Who decides about the pools of one model. Its methods are called in this order in a step, on all ranks alike.

    ``schedule``: when moves are due. The engine writes it, where the user reschedules.
    """

    schedule: Schedule

    @property
    def window(self) -> int:
        """Steps before a move, its own among them, that `take` is called for; 1: for the due step alone."""

    @property
    def busy(self) -> bool:
        """Whether it is called for every step, up to the last decision."""

    def collects(self, step: int, due: int | None) -> bool:
        """Before a step: whether taps capture its backwards, for `take` or for a decision. ``due``: the next one."""

    def take(self, step: int, due: int | None) -> None:
        """After a step that was really taken: what it showed. Gradients are still there. ``due``: as for `collects`."""

    def proposals(self, step: int, active: Mapping[str, bool]) -> Iterator[Proposal]:
        """At a due step: what is to move. ``active``: by site, whether it took part in the step, on any rank.

        Made one after another, with the ranks' agreement between them. A plan with ``skipped`` stops the whole move.
        """

    def forget(self) -> None:
        """After a decision, or where the schedule changed: what was collected for it counts no more."""

    def unregister(self) -> None:
        """Take all buffers off the model."""
