"""The only window from a compiled graph to Python: which sites took part in a backward, and what they saw."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Collection
from typing import Any, Final, final

import torch
from torch import Tensor

_numbers: Final = itertools.count(1)


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
        self.seen: list[tuple[int, int]] = []  # (backward, rows) of each notice
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.dense: list[Tensor] = []
        self._versions: list[tuple[int, int]] = []
        self._pair_tasks: list[int] = []
        self._dense_tasks: list[int] = []
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
        return sum(rows for _, rows in self.seen)

    @property
    def tasks(self) -> set[int]:
        """Their numbers."""
        return {task for task, _ in self.seen}

    def reset(self) -> None:
        """Forget what was seen, and disarm."""
        self.armed = False
        self.seen, self.pairs, self.dense, self._versions = [], [], [], []
        self._pair_tasks, self._dense_tasks = [], []

    def settle(self, arrived: Collection[int]) -> bool:
        """Keep what was seen in the backwards that ``arrived``; say whether anything was.

        The gradient of others went elsewhere (`torch.autograd.grad` for an input) or was thrown away.
        """
        for task, _ in self.seen:
            if task not in arrived:
                self._keep(arrived)
                break
        return bool(self.seen)

    def _keep(self, tasks: Collection[int]) -> None:
        self.seen = [(t, rows) for t, rows in self.seen if t in tasks]
        stays = [t in tasks for t in self._pair_tasks]
        self.pairs = [pair for pair, stay in zip(self.pairs, stays, strict=True) if stay]
        self._versions = [version for version, stay in zip(self._versions, stays, strict=True) if stay]
        self._pair_tasks = [t for t in self._pair_tasks if t in tasks]
        self.dense = [d for d, t in zip(self.dense, self._dense_tasks, strict=True) if t in tasks]
        self._dense_tasks = [t for t in self._dense_tasks if t in tasks]

    def overwritten(self) -> bool:
        """Whether someone wrote into a captured tensor after its backward (a reused input buffer, for instance)."""
        return any((x._version, gy._version) != seen for (x, gy), seen in zip(self.pairs, self._versions, strict=True))

    def keep(self, x: Tensor, gy: Tensor, task: int) -> None:
        """Capture one pair of a backward."""
        self.pairs.append((x, gy))
        self._pair_tasks.append(task)
        self._versions.append((x._version, gy._version))

    def keep_dense(self, gradient: Tensor, task: int) -> None:
        """Capture one dense gradient of a backward."""
        self.dense.append(gradient)
        self._dense_tasks.append(task)


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
    task = current_task()
    tap.seen.append((task, x.shape[0]))
    if tap.armed:
        tap.keep(x.clone() if copy else x.detach(), gy.clone() if copy else gy.detach(), task)


def notify_dense(number: int, gradient: Tensor, copy: bool = False) -> None:
    """Note a backward through the dense weight: its gradient ``[out, in]``."""
    tap = _registry.get(number)
    if tap is None or not tap.listens:
        return
    task = current_task()
    tap.seen.append((task, 1))  # how many rows went into it nobody knows; some did
    if tap.armed:
        tap.keep_dense(gradient.clone() if copy else gradient.detach(), task)
