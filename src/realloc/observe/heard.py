"""What backwards said of ids since the last step, as far as the optimizer is about to take it."""

from __future__ import annotations

from typing import Final, final

import torch
from torch import Tensor, nn

from realloc.kernels.seek import Noted
from realloc.kernels.taps import current_task
from realloc.observe.ranks import Ranks
from realloc.sites.last_gradient import thrown_away

MOST: Final = 64  # look-ups that are kept apart, or twice as many where gradients accumulate


@final
class Heard:
    """The look-ups of one parameter whose gradient came, by the backward in which it came.

    Which of them count is what `observe.backwards` says of slots: those whose gradient reached the parameter, and was
    not thrown away. A GradScaler that skips a step says nothing to the optimizer; `zero_grad` is the sign.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._noted: list[tuple[int, Noted]] = []
        self._arrived: set[int] = set()  # backwards whose gradient reached the parameter

    def __len__(self) -> int:
        return len(self._noted)

    def arrive(self) -> None:
        """A gradient was accumulated."""
        self._arrived.add(current_task())

    def note(self, noted: Noted) -> None:
        """Take in a look-up; the first one of a backward shows whether those before it were thrown away."""
        task = current_task()
        if self._arrived and task not in self._arrived and thrown_away(self._gradient(), self._was_zero):
            self._noted = [one for one in self._noted if one[0] not in self._arrived]
            self._arrived.clear()
        self._noted.append((task, noted))
        if len(self._noted) > 2 * MOST:
            self._shorten()

    def _shorten(self) -> None:
        """Add up what arrived; of what did not, as where `torch.autograd.grad` asked for it, keep the last."""
        arrived = [noted for task, noted in self._noted if task in self._arrived]
        others = [one for one in self._noted if one[0] not in self._arrived]
        self._noted = [(min(self._arrived), noted) for noted in by_table(arrived)] + others[-MOST:]

    def _gradient(self) -> Tensor | None:
        gradient = self._parameter.grad
        return gradient._values() if gradient is not None and gradient.is_sparse else gradient

    def _was_zero(self) -> bool:
        """Whether what arrived brought nothing but zeros."""
        return not any(bool(noted.numbers[:, 1].any()) for task, noted in self._noted if task in self._arrived)

    def take(self) -> list[Noted]:
        """What counts in this step, and begin anew. Where the gradient was set by hand, it is all that was noted."""
        arrived, noted = self._arrived, self._noted
        self._arrived, self._noted = set(), []
        return [one for task, one in noted if not arrived or task in arrived]


def by_table(noted: list[Noted]) -> list[Noted]:
    """One for each table, ascending; ids in the order in which they came first.

    >>> one, two = (Noted(3, torch.tensor(ids), torch.ones(2, 2)) for ids in ([7, 5], [9, 7]))
    >>> found = by_table([one, two])[0]
    >>> found.ids.tolist(), found.numbers[:, 0].tolist()
    ([7, 5, 9], [2.0, 1.0, 1.0])
    """
    tables: dict[int, list[Noted]] = {}
    for one in noted:
        tables.setdefault(one.table, []).append(one)
    return [some[0] if len(some) == 1 else once(_joined(some)) for _, some in sorted(tables.items())]


def once(noted: Noted) -> Noted:
    """Each id once, in the order in which they came first; what it said is added up."""
    ids, numbers = noted.ids, noted.numbers
    found, where = torch.unique(ids, return_inverse=True)
    if len(found) == len(ids):
        return noted
    first = torch.full_like(found, len(ids)).scatter_reduce(0, where, torch.arange(len(ids)), "amin")
    order = first.argsort()
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    sums = numbers.new_zeros(len(found), numbers.shape[1]).index_add(0, places[where], numbers)
    return Noted(noted.table, found[order], sums)


def everyones(noted: list[Noted], width: int, tables: int, ranks: Ranks) -> list[Noted]:
    """What the look-ups of all ranks say, those of rank 0 first: ``noted`` by table, of ``width`` numbers an id."""
    none = torch.zeros(0, 2, dtype=torch.int64)
    keys = torch.cat([none, *(torch.stack([torch.full_like(n.ids, n.table), n.ids], 1) for n in noted)])
    numbers = torch.cat([torch.zeros(0, width, dtype=torch.float64), *(n.numbers for n in noted)])
    if not ranks.largest([len(keys)])[0]:
        return []
    keys, numbers = ranks.rows(keys), ranks.rows(numbers)
    mine = [keys[:, 0] == table for table in range(tables)]
    found = [Noted(table, keys[one, 1], numbers[one]) for table, one in enumerate(mine)]
    return [once(one) for one in found if one.ids.numel()]


def _joined(noted: list[Noted]) -> Noted:
    ids, numbers = torch.cat([one.ids for one in noted]), torch.cat([one.numbers for one in noted])
    return Noted(noted[0].table, ids, numbers)
