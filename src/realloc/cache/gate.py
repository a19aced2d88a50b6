"""The way into a block: through it, or past it where a frozen prefix was computed already."""

from __future__ import annotations

import copy
from typing import Any, Protocol, final

from torch import nn


class Way(Protocol):
    """What a gate asks of the prefix it belongs to."""

    def passes(self, number: int) -> bool:
        """Whether the block of this number is passed by."""

    def past(self, number: int, hidden: Any) -> Any:
        """What comes out of a block that was passed by."""

    def through(self, number: int, output: Any) -> None:
        """A block has run."""


@final
class Gate:
    """Stands as ``forward`` on one block. On a copy of the block, or in a pickle, it only runs the block."""

    def __init__(self, block: nn.Module, number: int = 0, way: Way | None = None) -> None:
        self.block = block
        self.number = number
        self.way = way

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block or pass it by."""
        way = self.way
        if way is not None and way.passes(self.number):
            return way.past(self.number, args[0] if args else kwargs["hidden_states"])
        output = type(self.block).forward(self.block, *args, **kwargs)
        if way is not None:
            way.through(self.number, output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Gate:
        return Gate(copy.deepcopy(self.block, memo))

    def __reduce__(self) -> tuple[type[Gate], tuple[nn.Module]]:
        return (Gate, (self.block,))
