"""Notices when a weight that should not change has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from realloc.kernels.digest import digest


@final
class Watch:
    """Compares versions of all tensors at each look, and the sum of one of them, in turn.

    Whatever writes to a tensor raises its version, but for writes through ``.data``, which only the sum shows, within
    as many looks as there are tensors.

    >>> import torch
    >>> weight = torch.ones(3)
    >>> watch = Watch([weight])
    >>> watch.changed(), weight.data.fill_(2.0).sum().item(), watch.changed(), watch.changed()
    (False, 6.0, True, False)
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)
        self._turn = 0
        self.accept()

    def accept(self) -> None:
        """Take the tensors as they are now for unchanged."""
        self._versions = [t._version for t in self._tensors]
        self._places = [t.data_ptr() for t in self._tensors]
        self._sums = [_sum(t) for t in self._tensors]

    def changed(self) -> bool:
        """Whether any was written to since the last look that said so, or since the start."""
        if not self._tensors:
            return False
        self._turn = (self._turn + 1) % len(self._tensors)
        tensor = self._tensors[self._turn]
        same = (
            all(t._version == v for t, v in zip(self._tensors, self._versions, strict=True))
            and all(t.data_ptr() == p for t, p in zip(self._tensors, self._places, strict=True))
            and _sum(tensor) == self._sums[self._turn]
        )
        if not same:
            self.accept()
        return not same

    def digest(self) -> int:
        """Of all bytes, 63 bits: equal for equal weights, also in another process."""
        parts = [digest([tensor]) for tensor in self._tensors]  # one by one: `digest` copies what it is given
        return digest([torch.tensor(parts, dtype=torch.int64)])


def _sum(tensor: Tensor) -> float:
    return float(tensor.detach().float().sum())
