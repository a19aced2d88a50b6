"""Tables in which an id is the product of two rows of one weight: what they hold of their budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn


class Factored(nn.Module, ABC):
    """Rows without a sketch and without owners. ``budget``: bytes; ``moments``: numbers beside each weight."""

    weight: nn.Parameter
    budget: int
    moments: int

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        before = self.held
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.budget += self.held - before  # the same rows of another dtype, as `Rows` counts them
        return self

    @property
    def held(self) -> int:
        """Bytes of the rows and their moments."""
        return self.weight.numel() * self.weight.element_size() * (1 + self.moments)

    @property
    def parked(self) -> int:
        """Bytes of the budget that no row has."""
        return self.budget - self.held

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """Look up ids ``[...]``."""
