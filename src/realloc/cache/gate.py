"""The way into a block: through it, or past it where a frozen prefix was computed already."""

from __future__ import annotations

import copy
from typing import Any, Protocol, final

import torch
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
        if args and torch.is_tensor(args[0]) and not args[0].requires_grad and _goes_deaf(self.block):
            args = (args[0].detach().requires_grad_(True), *args[1:])
        output = type(self.block).forward(self.block, *args, **kwargs)
        if way is not None:
            way.through(self.number, output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Gate:
        return Gate(copy.deepcopy(self.block, memo))

    def __reduce__(self) -> tuple[type[Gate], tuple[nn.Module]]:
        return (Gate, (self.block,))


def _goes_deaf(block: nn.Module) -> bool:
    """Whether a block that trains gets no gradient unless its input requires one: torch's reentrant checkpoints.

    transformers leaves the switch and the function on each block.
    """
    if not (getattr(block, "gradient_checkpointing", False) and block.training and torch.is_grad_enabled()):
        return False
    words = getattr(getattr(block, "_gradient_checkpointing_func", None), "keywords", {})
    return words.get("use_reentrant") is not False and any(p.requires_grad for p in block.parameters())
