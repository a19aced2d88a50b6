"""What a decision may know of the ranks of one layer, and what a score of ranks is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Generator, Tensor

from realloc.kernels.rank_product import gradient_of

Pairs = tuple[tuple[Tensor, Tensor], ...]


@final
@dataclass(frozen=True, eq=False)
class HeldRanks:
    """The ranks that one layer holds now. The layer adds ``scale * B'A`` to its weight."""

    name: str
    cap: int  # most ranks it may hold
    shape: tuple[int, int]  # (out, in)
    places: Tensor  # int64 [r], sorted
    a: Tensor  # [r, in]
    b: Tensor  # [r, out]
    scale: float
    means: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # sensitivity of A and B, spread of A and B
    pairs: Pairs = ()  # (input, output gradient) of every backward of the step
    dense: tuple[Tensor, ...] = ()
    reduce: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)  # the mean over the ranks of a DDP run
    active: bool = True  # took part in a backward of this step; if not, nothing of it moves

    @property
    def rank(self) -> int:
        """Ranks held."""
        return self.places.numel()

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return sum(self.shape)

    @property
    def room(self) -> int:
        """Ranks that could be added."""
        return self.cap - self.rank

    def gradient(self, half: int | None = None) -> Tensor:
        """Gradient ``[out, in]`` of the layer's weight, over all processes; of one half (0, 1) of the rows, or all."""
        pairs = self.pairs if half is None else [_half(x, gy, half) for x, gy in self.pairs]
        dense = self.dense if half is None else self.dense[half::2]
        like = torch.empty(self.shape, dtype=self.a.dtype, device=self.a.device)
        return self.reduce(gradient_of(pairs, dense, like))


def _half(x: Tensor, gy: Tensor, half: int) -> tuple[Tensor, Tensor]:
    middle = (len(x) + 1) // 2
    return (x[:middle], gy[:middle]) if half == 0 else (x[middle:], gy[middle:])


@final
@dataclass(frozen=True)
class RankKeep:
    """The worth of held ranks per parameter: ``measure`` gives one float ``[r]`` for each, higher is worth more."""

    name: str
    measure: Callable[[HeldRanks, Generator], Tensor]


@final
@dataclass(frozen=True, eq=False)
class Wanted:
    """What ranks not held are wanted for: for each site the gain per parameter of the first, second... new rank."""

    gains: list[Tensor]  # [room] each, not rising
    note: str = ""  # what a run should be told of how they came about


@final
@dataclass(frozen=True)
class RankWant:
    """The worth of ranks not held, over all sites of a pool. ``looks``: whether it needs gradients of weights."""

    name: str
    measure: Callable[[Sequence[HeldRanks], Sequence[Generator]], Wanted]
    looks: bool = False
