"""The only window from a compiled graph to Python: which sites took part in a backward, and what they saw."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from realloc.kernels.walks import Walk

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
        self.walk: Walk | None = None  # what is derived from the placement; see kernels/walks.py
        _registry[self.number] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tap:
        memo[id(self)] = copy = Tap()
        return copy

    def __reduce__(self) -> tuple[type[Tap], tuple[()]]:
        return Tap, ()

    def reset(self) -> None:
        """Forget what was seen, and disarm."""
        self.touched = self.rows = 0
        self.armed = False
        self.pairs, self.dense, self._versions = [], [], []

    def overwritten(self) -> bool:
        """Whether someone wrote into a captured tensor after its backward (a reused input buffer, for instance)."""
        return any((x._version, gy._version) != seen for (x, gy), seen in zip(self.pairs, self._versions, strict=True))

    def keep(self, x: Tensor, gy: Tensor) -> None:
        """Capture one pair."""
        self.pairs.append((x, gy))
        self._versions.append((x._version, gy._version))


_registry: Final[weakref.WeakValueDictionary[int, Tap]] = weakref.WeakValueDictionary()


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
    tap.touched += 1
    tap.rows += x.shape[0]
    if tap.armed:
        tap.keep(x.clone() if copy else x.detach(), gy.clone() if copy else gy.detach())


@torch.no_grad()
def notify_dense(number: int, gradient: Tensor, copy: bool = False) -> None:
    """Note a backward through the dense weight: its gradient ``[out, in]``."""
    tap = _registry.get(number)
    if tap is None:
        return
    tap.touched += 1
    if tap.armed:
        tap.dense.append(gradient.clone() if copy else gradient.detach())
