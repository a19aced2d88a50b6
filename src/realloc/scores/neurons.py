"""What a decision may know of the units of one group, and what scores of units are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import torch
from torch import Generator, Tensor

OPEN: Final = 0.01  # sum of a new unit of GradMax, so that relu'(0) = 0 does not close it
Need = Literal["worth", "outputs", "products"]  # worth: summed over the window; the others: what a backward shows


@final
@dataclass(frozen=True, eq=False)
class Part:
    """A parameter with the units of a group along its first axis: ``values`` ``[units, entries of one unit]``."""

    name: str
    values: Tensor
    block: int = 1  # rows, or columns, that each unit has in it
    tail: int = 1  # entries of a kernel, last along the entries of a unit
    vector: bool = False  # a bias, or a factor or offset of a norm


@final
@dataclass(frozen=True, eq=False)
class Neurons:
    """The units that one group holds now: neurons, channels, heads."""

    name: str
    width: int
    price: int  # what one unit costs now
    least: int
    most: int
    makers: tuple[Part, ...]  # weights and biases that compute the units
    readers: tuple[Part, ...]  # weights that read them
    norms: tuple[Part, ...] = ()  # factors and offsets of norms on them
    worth: Tensor | None = None  # float64 [units], squared effect of removing each, summed over the window
    age: Tensor | None = None  # int64 [units], steps since it came
    outputs: Tensor | None = None  # [units], mean absolute output
    means: tuple[tuple[str, Tensor], ...] = ()  # of each reader: mean of what it reads, [units, block]
    products: Tensor | None = None  # [readers' rows, makers' columns]: mean of output gradient times input
    seen: float = 1.0  # steps in the sums of `worth`
    active: bool = True  # whether all of its weights took part in the step; else nothing of it moves
    level: float | None = None  # what a unit gives out whose sum is `OPEN`, if a bias behind can take that back


@final
@dataclass(frozen=True)
class WidthKeep:
    """The worth of held units: ``measure`` gives one float64 ``[units]``, in loss where it can; higher counts."""

    name: str
    needs: frozenset[Need]
    measure: Callable[[Neurons, Generator], Tensor]


@final
@dataclass(frozen=True)
class WidthWant:
    """The worth of units not held: the gain of the first, second... new unit, float64, not rising, as many as asked.

    ``measure(group, kept, count, generator)``; ``kept`` are the worths of the units that stay.
    """

    name: str
    needs: frozenset[Need]
    measure: Callable[[Neurons, Tensor, int, Generator], Tensor]


def squared(part: Part) -> Tensor:
    """Sum of squares of each unit's entries, float64."""
    return part.values.double().square().flatten(1).sum(1)


def total(parts: Sequence[Part]) -> Tensor:
    """Sum of squares of each unit over several parameters."""
    return torch.stack([squared(part) for part in parts]).sum(0)
