"""What a step costs when some layers train: FLOPs of one token, or microseconds of a cost table, of a whole choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from realloc.errors import ConfigError

Unit = Literal["FLOPs a token", "microseconds a step"]
TIMED: Final[Unit] = "microseconds a step"


@final
@dataclass(frozen=True)
class CostTable:
    """What each layer costs by part, in integers. Made by `realloc.cost_table` (microseconds) or from sizes (FLOPs).

    Prints as a table.

    Args:
        forward: of each layer, from the input.
        inputs: of the gradient of its input.
        weights: of the gradient of its weights.
        unit: what they count.

    Raises:
        ConfigError: parts of other lengths, or a cost that is no integer, or below 0; of microseconds, below 1.
    """

    forward: tuple[int, ...]
    inputs: tuple[int, ...]
    weights: tuple[int, ...]
    unit: Unit = TIMED

    def __post_init__(self) -> None:
        if not len(self.forward) == len(self.inputs) == len(self.weights) >= 1:
            lengths = len(self.forward), len(self.inputs), len(self.weights)
            raise ConfigError(f"a cost table has three costs for each layer; got {lengths} of them")
        least = 1 if self.unit == TIMED else 0
        for cost in (*self.forward, *self.inputs, *self.weights):
            if isinstance(cost, bool) or not isinstance(cost, int) or not least <= cost < 2**53:
                raise ConfigError(f"a cost table holds {cost!r}; a cost is an integer from {least}, in {self.unit}")

    @classmethod
    def of_sizes(cls, sizes: Sequence[int]) -> CostTable:
        """FLOPs of one token: each part takes two for each weight of a layer.

        Attention between tokens is left out: it is the same share of every layer.
        """
        each = tuple(2 * size for size in sizes)
        return cls(each, each, each, "FLOPs a token")

    def __len__(self) -> int:
        return len(self.forward)

    def cost(self, on: Sequence[int], *, below: bool, cached: bool) -> int:
        """Cost of a step in the layers, forward and backward, without the head and what lies below the first layer.

        A layer that trains pays its three parts; one above it that does not train passes the gradient on and pays two;
        one below the lowest pays the forward pass, or nothing where that is read from a cache.

        Args:
            on: layers that train, ascending.
            below: whether what runs below the first layer trains, so that the gradient flows through all.
            cached: whether the layers below the lowest one that trains are read.

        >>> table = CostTable((3, 3), (2, 2), (4, 5))
        >>> [table.cost([1], below=False, cached=cached) for cached in (True, False)], table.full
        ([10, 13], 19)
        """
        lowest = 0 if below else min(on, default=len(self))
        total = sum(self.forward[lowest:]) + sum(self.inputs[lowest:]) + sum(self.weights[layer] for layer in on)
        return total if cached else total + sum(self.forward[:lowest])

    @property
    def full(self) -> int:
        """Where every layer trains: what a budget is a share of. Never 0, also for layers without weights."""
        return max(1, self.cost(range(len(self)), below=True, cached=False))

    def budget(self, share: float) -> int:
        """The most that is no larger a share of the full cost: exactly what ``cost / full <= share`` lets through.

        >>> CostTable.of_sizes([1] * 50).budget(0.29), int(0.29 * 300)
        (87, 87)
        >>> CostTable((100,), (1,), (99,)).budget(0.29), int(0.29 * 200)
        (58, 57)
        """
        most = math.floor(share * self.full)
        while (most + 1) / self.full <= share:
            most += 1
        while most / self.full > share:
            most -= 1
        return most

    def __str__(self) -> str:
        lines = [f"{self.unit}, by layer from the input:", "  layer     forward  of its input  of its weights"]
        rows = zip(self.forward, self.inputs, self.weights, strict=True)
        lines += [f"  {layer:>5} {a:>11,} {b:>13,} {c:>15,}" for layer, (a, b, c) in enumerate(rows)]
        return "\n".join([*lines, f"  {self.full:,} where every layer trains"])


def layer_flops(sizes: Sequence[int], on: Sequence[int], *, below: bool, cached: bool) -> int:
    """FLOPs of one token in layers of so many weights; see `CostTable.cost`.

    >>> [layer_flops([5] * 6, [4, 5], below=False, cached=cached) for cached in (True, False)]
    [60, 100]
    >>> layer_flops([5] * 6, range(6), below=True, cached=False)
    180
    """
    return CostTable.of_sizes(sizes).cost(on, below=below, cached=cached)
