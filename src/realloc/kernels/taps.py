"""The only window from a compiled graph to Python: which sites took part in a backward, and what they saw."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Final, final

import torch
from torch import Tensor

_numbers: Final = itertools.count(1)


@final
class Tap:
    """What one site saw since the last `reset`. Its number is what a graph carries; 0 means no tap.

    >>> tap = Tap()
    >>> notify(tap.number, torch.zeros(3, 2), torch.zeros(3, 4))
    >>> tap.touched, tap.rows, tap.pairs
    (1, 3, [])
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.touched = 0
        self.rows = 0
        self.armed = False
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.dense: list[Tensor] = []
        self._versions: list[tuple[int, int]] = []
        self._tasks: list[tuple[int, int]] = []  # (backward, rows) of each notice
        self._pair_tasks: list[int] = []
        self._dense_tasks: list[int] = []
        self._arrived: set[int] = set()  # backwards whose gradient reached the optimizer's parameter
        self.walk: Any = None  # what is derived from the placement; see kernels/walks.py
        _registry[self.number] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        memo[id(self)] = copy = Tap()
        return copy

    def __reduce__(self) -> tuple[type[Tap], tuple[()]]:
        return Tap, ()

    def reset(self) -> None:
        """Forget what was seen, and disarm."""
        self.armed = False
        self.pairs, self.dense, self._versions = [], [], []
        self._pair_tasks, self._dense_tasks = [], []
        self.lower()

    def lower(self) -> None:
        """Forget who took part, for the next step."""
        self.touched = self.rows = 0
        self._tasks = []
        self._arrived = set()

    def arrive(self, task: int, anew: bool) -> None:
        """The gradient of one backward reaches the parameter. If that starts ``anew``, those before were thrown away.

        Backwards nest (checkpointing runs one inside another), so what has not arrived yet is kept until `settle`.
        """
        if anew:
            self._keep({t for t in self._tasks_seen() if t == task or t not in self._arrived})
            self._arrived = set()
        self._arrived.add(task)

    def arrived_before(self, task: int) -> bool:
        """Whether the gradient of another backward than this one has arrived since the last step."""
        return bool(self._arrived - {task})

    def settle(self) -> None:
        """Drop what was seen in a backward whose gradient went elsewhere (`torch.autograd.grad` for an input)."""
        self._keep(self._arrived)

    def _tasks_seen(self) -> set[int]:
        return {task for task, _ in self._tasks}

    def _keep(self, tasks: set[int]) -> None:
        if self._tasks_seen() <= tasks:
            return
        self._tasks = [(t, rows) for t, rows in self._tasks if t in tasks]
        self.touched, self.rows = len(self._tasks), sum(rows for _, rows in self._tasks)
        stays = [t in tasks for t in self._pair_tasks]
        self.pairs = [pair for pair, stay in zip(self.pairs, stays, strict=True) if stay]
        self._versions = [version for version, stay in zip(self._versions, stays, strict=True) if stay]
        self._pair_tasks = [t for t in self._pair_tasks if t in tasks]
        self.dense = [d for d, t in zip(self.dense, self._dense_tasks, strict=True) if t in tasks]
        self._dense_tasks = [t for t in self._dense_tasks if t in tasks]

    def note(self, rows: int) -> int:
        """Count one backward. Returns its number."""
        task = current_task()
        self.touched += 1
        self.rows += rows
        self._tasks.append((task, rows))
        return task

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


def current_task() -> int:
    """Number of the backward that is running now, -1 outside one."""
    return int(torch._C._current_graph_task_id())


def find(number: int) -> Tap | None:
    """The tap of that number, if it still lives."""
    return _registry.get(number)


@torch.no_grad()
def notify(number: int, x: Tensor, gy: Tensor, copy: bool = False) -> None:
    """Note one backward of a site: input ``[b, in]`` and gradient of its output ``[b, out]``.

    An armed tap keeps the two without a copy: no eager operation writes into a tensor that somebody holds without
    raising its version. A compiled graph does (it plans its memory without looking at who holds it): ``copy``.
    """
    tap = _registry.get(number)
    if tap is None:
        return
    task = tap.note(x.shape[0])
    if tap.armed:
        tap.keep(x.clone() if copy else x.detach(), gy.clone() if copy else gy.detach(), task)


@torch.no_grad()
def notify_dense(number: int, gradient: Tensor, copy: bool = False) -> None:
    """Note a backward through the dense weight: its gradient ``[out, in]``."""
    tap = _registry.get(number)
    if tap is None:
        return
    task = tap.note(0)
    if tap.armed:
        tap.keep_dense(gradient.clone() if copy else gradient.detach(), task)
