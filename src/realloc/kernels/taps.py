"""The only window from a compiled graph to Python: which sites took part in a backward, and what they saw."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Container
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, final

import torch
from torch import Tensor

_numbers: Final = itertools.count(1)
DEEPEST: Final = 32  # backwards that may be under way at once


@final
class Notice(NamedTuple):
    """What one site showed in one backward."""

    task: int  # number of the backward
    rows: int  # of its input; how many went into a dense gradient nobody knows: 1
    pair: tuple[Tensor, Tensor] | None = None  # input [b, in] and gradient of the output [b, out], if armed
    dense: Tensor | None = None  # gradient [out, in] of a dense weight that was read, if armed
    versions: tuple[int, ...] = ()  # of the tensors of the pair when they were captured


_make: Final = partial(tuple.__new__, Notice)  # as Notice(...), without its Python frame


class Listener(Protocol):
    """Who must know of a backward before any of its gradients is accumulated; several taps share one."""

    task: int  # the backward that it was told of last

    def begin(self, task: int) -> None:
        """A backward has begun."""


@final
class Tap:
    """What one site saw since the last `reset`. Its number is what a graph carries; 0 means no tap.

    >>> tap = Tap(listens=True)
    >>> notify(tap.number, torch.zeros(3, 2), torch.zeros(3, 4))
    >>> tap.touched, tap.rows, tap.pairs
    (1, 3, [])
    """

    def __init__(self, listens: bool = False) -> None:
        self.number = next(_numbers)
        self.listens = listens  # only while attached: nobody else would ever forget what was seen
        self.armed = False
        self.seen: list[Notice] = []
        self.arrived: set[int] = set()  # backwards whose gradient reached the pool; its sites share the set
        self.listener: Listener | None = None  # told of each backward before it accumulates anything
        self.walk: Any = None  # what is derived from the placement; see kernels/walks.py
        _registry[self.number] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        memo[id(self)] = copy = Tap()
        return copy

    def __reduce__(self) -> tuple[type[Tap], tuple[()]]:
        return Tap, ()

    @property
    def touched(self) -> int:
        """How many backwards the site took part in."""
        return len(self.seen)

    @property
    def rows(self) -> int:
        """How many rows they had."""
        return sum(notice.rows for notice in self.seen)

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """What was captured of backwards through the layer."""
        return [notice.pair for notice in self.seen if notice.pair is not None]

    @property
    def dense(self) -> list[Tensor]:
        """What was captured of backwards through the dense weight."""
        return [notice.dense for notice in self.seen if notice.dense is not None]

    def reset(self) -> None:
        """Forget what was seen, and disarm."""
        self.armed, self.seen = False, []

    def keep(self, tasks: Container[int]) -> None:
        """Forget what was seen in other backwards."""
        self.seen = [notice for notice in self.seen if notice.task in tasks]

    def note(self, notice: Notice) -> None:
        """Take in one notice.

        A backward whose gradient goes elsewhere (`torch.autograd.grad` for an input) never arrives. One that is
        still under way must be kept, and they nest (checkpointing); none nests as deep as `DEEPEST`.
        """
        listener = self.listener
        if listener is not None and listener.task != notice.task:
            listener.begin(notice.task)
        self.seen.append(notice)
        if len(self.seen) > DEEPEST:
            waiting = [n.task for n in self.seen if n.task not in self.arrived]
            if len(waiting) > DEEPEST:
                self.keep(self.arrived | set(waiting[-DEEPEST // 2 :]))

    def saw(self, task: int) -> None:
        """Take in that a backward reached the segment, where nothing else told of it."""
        if self.listens and not any(notice.task == task for notice in self.seen):
            self.note(Notice(task, 1))

    def overwritten(self) -> bool:
        """Whether someone wrote into a captured tensor after its backward (a reused input buffer, for instance)."""
        return any(tuple(t._version for t in n.pair) != n.versions for n in self.seen if n.pair is not None)


_registry: Final[weakref.WeakValueDictionary[int, Tap]] = weakref.WeakValueDictionary()


current_task: Final = torch._C._current_graph_task_id
"""``() -> int``: number of the backward that is running now, -1 outside one."""


def find(number: int) -> Tap | None:
    """The tap of that number, if it still lives."""
    return _registry.get(number)


def notify(number: int, x: Tensor, gy: Tensor, copy: bool = False) -> None:
    """Note one backward of a site: input ``[b, in]`` and gradient of its output ``[b, out]``.

    An armed tap keeps the two without a copy: no eager operation writes into a tensor that somebody holds without
    raising its version. A compiled graph does (it plans its memory without looking at who holds it): ``copy``.
    """
    tap = _registry.get(number)
    if tap is None or not tap.listens:
        return
    if not tap.armed:
        if tap.seen or tap.arrived:
            tap.note(Notice(current_task(), x.shape[0]))
        else:  # the first backward of a step: there is nothing to tell or to look at
            tap.seen.append(_make((current_task(), x.shape[0], None, None, ())))
        return
    pair = (x.clone(), gy.clone()) if copy else (x.detach(), gy.detach())
    tap.note(Notice(current_task(), x.shape[0], pair, versions=(pair[0]._version, pair[1]._version)))


def notify_dense(number: int, gradient: Tensor, copy: bool = False) -> None:
    """Note a backward through the dense weight: its gradient ``[out, in]``."""
    tap = _registry.get(number)
    if tap is None or not tap.listens:
        return
    dense = (gradient.clone() if copy else gradient.detach()) if tap.armed else None
    tap.note(Notice(current_task(), 1, dense=dense))
