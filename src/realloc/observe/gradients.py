"""Where the gradient of not-held units comes from: pairs of (input, output gradient), or a dense gradient.

Growth by gradient needs no dense gradient in memory: pairs give it for any rows or any chosen units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from realloc.kernels.candidates import candidate_gradient, row_block_gradient
from realloc.kernels.finite import all_finite
from realloc.kernels.search import locate
from realloc.sites.grid import Grid

Reduce = Callable[[Tensor], Tensor]
BLOCK_WEIGHTS = 1 << 16  # dense weights looked at together: what a move needs beside the budget


def alone(tensor: Tensor) -> Tensor:
    """The reduction of a run with one process: none."""
    return tensor


class GradientSource(Protocol):
    """The gradient of a site, summed over the micro-batches of one optimizer step and averaged over ranks."""

    def at(self, places: Tensor) -> Tensor:
        """``[u, size]`` at the given places, ascending."""

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """``(first place, [k, size])`` over the whole grid in ascending order, a few rows at a time."""


def _row_steps(grid: Grid) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_WEIGHTS // max(1, grid.width * grid.r))
    for first in range(0, grid.rows, step):
        yield first, min(grid.rows, first + step)


@final
@dataclass(frozen=True, eq=False)
class PairGradient:
    """From pairs ``(x [b, in], gy [b, out])`` of every backward of the step."""

    grid: Grid
    pairs: list[tuple[Tensor, Tensor]]
    dense: list[Tensor]
    like: Tensor
    reduce: Reduce = alone

    def at(self, places: Tensor) -> Tensor:
        """Sampled dense-dense product at the places only."""
        grid = self.grid
        if self.pairs:
            found = candidate_gradient(self.pairs, places, grid.r, grid.c)
        else:
            found = self.like.new_zeros(places.numel(), grid.size)
        for part in self.dense:
            found = found + part.reshape(-1)[grid.elements(places)]
        return self.reduce(found)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """One matrix product for each block of rows: O(block) memory."""
        grid = self.grid
        for first, last in _row_steps(grid):
            low, high = first * grid.r, last * grid.r
            if self.pairs:
                rows = row_block_gradient(self.pairs, low, high)
            else:
                rows = self.like.new_zeros(high - low, grid.width)
            for part in self.dense:
                rows = rows + part[low:high]
            yield first * grid.columns, grid.fold(self.reduce(rows))


@final
@dataclass(frozen=True, eq=False)
class DenseGradient:
    """From a dense gradient ``[height, width]`` that exists anyway."""

    grid: Grid
    dense: Tensor
    reduce: Reduce = alone

    def at(self, places: Tensor) -> Tensor:
        """Read the places."""
        return self.reduce(self.dense.reshape(-1)[self.grid.elements(places)])

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Read block by block."""
        rows = self.dense.reshape(self.grid.height, self.grid.width)
        for first, last in _row_steps(self.grid):
            block = rows[first * self.grid.r : last * self.grid.r]
            yield first * self.grid.columns, self.grid.fold(self.reduce(block.contiguous()))


@final
@dataclass(frozen=True, eq=False)
class CandidateGradient:
    """What was collected of a few candidates over several steps."""

    places: Tensor  # int64 [u], ascending
    mean: Tensor  # [u, size] of their gradients
    size: Tensor  # [u, size], the root of their mean square: what second moments start from

    def at(self, places: Tensor) -> Tensor:
        """The mean at some of them, ascending."""
        return self.mean[locate(self.places, places)]

    def size_at(self, places: Tensor) -> Tensor:
        """The root mean square there."""
        return self.size[locate(self.places, places)]


@torch.no_grad()
def update_average(average: Tensor, source: GradientSource, grid: Grid, decay: float) -> None:
    """Running mean of the dense gradient, in place: ``average = decay * average + (1 - decay) * gradient``.

    ``average`` is ``[units, size]``. This is SNFS's signal (1907.04840, section 3.2); it costs one dense matrix
    product and one dense buffer for each site, which the plan states.
    """
    for first, block in source.blocks():
        if not all_finite(block):
            continue  # one bad batch must not poison the mean for good
        average[first : first + block.shape[0]].mul_(decay).add_(block, alpha=1 - decay)
