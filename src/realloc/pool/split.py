"""What every flat pool shares: one parameter ``(n, 1)``, cut into one segment for each site once per forward."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from threading import get_ident
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from realloc.errors import RecordError, StateError
from realloc.kernels.cut import cut
from realloc.kernels.taps import Tap
from realloc.kernels.team import DAMAGED
from realloc.pool.names import FIRST

Situation = tuple[int, int, bool, bool]


class SplitPool:
    """A parameter and the extents of its sites. `FlatPool` and `RankPool` say what lies in a segment.

    ``unit_size``: slots in one step of the extents. Followed, never made itself.
    """

    unit_size: int
    taps: tuple[Tap, ...] = ()  # of the segments, where the split itself says who took part
    placement: ClassVar[tuple[str, ...]] = ()  # parts whose buffers say where units lie
    lasting: tuple[str, ...] = ()  # parts whose buffers are as long as the pool, and are cut with it

    def __init__(self, owner: nn.Module, number: int, parts: tuple[str, ...], prefix: str = FIRST) -> None:
        self.owner = owner
        self.number = number
        self.key = f"{prefix}pool{number}"  # name of the parameter on the owner
        self._names = {part: f"{prefix}{part}{number}" for part in parts}
        self._split: tuple[Situation, tuple[Tensor, ...]] | None = None
        self._depth = 0

    # where things are -------------------------------------------------------------------------------------------

    @property
    def parameter(self) -> nn.Parameter:
        """The values, ``(n, 1)``."""
        found = self.owner._parameters[self.key]
        assert found is not None
        return found

    def _buffer(self, part: str) -> Tensor:
        found = self.owner._buffers[self._names[part]]
        assert found is not None
        return found

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """Names of the placement's buffers on the owner."""
        return tuple(self._names[part] for part in self.placement)

    @property
    def extents(self) -> Tensor:
        """int64 [S + 1]: where each site begins; the last entry is the end of what is held."""
        return self._buffer("extents")

    @property
    def long_buffers(self) -> tuple[str, ...]:
        """Names of the buffers that are as long as the pool."""
        return tuple(name for part in self.lasting if (name := self._names[part]) in self.owner._buffers)

    @property
    def capacity(self) -> int:
        """Units the pool has room for."""
        return self.parameter.shape[0] // self.unit_size

    @property
    def held(self) -> int:
        """Units held by sites now."""
        return int(self.extents[-1])

    def bounds(self, index: int) -> tuple[int, int]:
        """First and past-last unit of a site."""
        first, last = self.extents[index : index + 2].tolist()
        if not 0 <= first <= last <= self.capacity:
            raise StateError(DAMAGED)
        return first, last

    def unregister(self) -> None:
        """Take everything off the owner again."""
        del self.owner._parameters[self.key]
        for name in self._names.values():
            self.owner._buffers.pop(name, None)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the segments now, where they are dense parameters; else none."""
        return ()

    # views for the forward pass ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Split the pool once for a whole forward of the model; nested calls share the outer split."""
        self._depth += 1
        situation = self._situation()
        if self._depth == 1 or self._split is None or self._split[0] != situation:
            ends = [e * self.unit_size for e in self.extents.tolist()]
            sizes = [b - a for a, b in pairwise([*ends, self.parameter.shape[0]])]
            if ends[0] or min(sizes) < 0:
                raise StateError(DAMAGED)
            self._split = situation, self._cut(sizes)

    def _situation(self) -> Situation:
        """What a split is good for: these values, this thread, gradients on or off.

        An interrupt can leave a forward without its end, and threads share the model: a view made without gradients
        would swallow those of a training step.
        """
        parameter = self.parameter
        version = -1 if parameter.is_inference() else parameter._version
        gradients = torch.is_grad_enabled() and parameter.requires_grad
        return version, get_ident(), gradients, torch.is_inference_mode_enabled()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_split": None, "_depth": 0}

    def close(self) -> None:
        """Drop the split: one that outlives its forward breaks after a move."""
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._split = None

    def segment(self, index: int) -> tuple[Tensor, bool]:
        """Values of one site, and whether they are the whole pool (as a compiled graph wants it)."""
        if torch.compiler.is_compiling():
            return self.parameter, True
        split = self._split
        if split is not None and split[0] == self._situation():
            return split[1][index], False
        if self.taps:
            return self._cut([])[index], False
        first, last = self.bounds(index)
        return self.parameter[first * self.unit_size : last * self.unit_size], False

    def _cut(self, sizes: list[int]) -> tuple[Tensor, ...]:
        if self.taps:
            return cut(self.parameter, self.shapes, self.taps)
        return torch.split(self.parameter, sizes)


def check_shapes(
    pool: SplitPool, state: dict[str, Tensor], prefix: str, compacted: bool, same: str, more: Sequence[str] = ()
) -> int:
    """Refuse a state whose tensors do not fit a pool by shape and dtype; a ``compacted`` one may be shorter.

    Args:
        pool: that would load it.
        state: from outside.
        prefix: of its names.
        compacted: whether the pool it is of was shortened.
        same: what a model must be made with to fit, in words.
        more: names of further buffers, whose lengths never change.

    Returns:
        Slots of the state's pool.

    Raises:
        RecordError: one is missing, or has another shape or dtype. Nothing was copied.
    """
    values = state[prefix + pool.key]
    length = len(values) if values.ndim else 0
    for name in (*pool.buffer_names, *pool.long_buffers, pool.key, *more):
        if prefix + name not in state:
            raise RecordError(f"{prefix}{name} is missing: this state was saved with another method")
        mine = pool.owner._parameters[name] if name == pool.key else pool.owner._buffers[name]
        assert mine is not None
        found, long = state[prefix + name], name == pool.key or name in pool.long_buffers
        shape = (min(length, len(mine)), 1) if compacted and long else tuple(mine.shape)
        if tuple(found.shape) != shape or (not long and found.dtype != mine.dtype):
            raise RecordError(
                f"{prefix + name}: {tuple(found.shape)} {found.dtype} in the state, {tuple(mine.shape)} {mine.dtype} "
                f"here; make the model with the same {same}"
            )
    return length
