"""Whether `zero_grad` threw a gradient away before the next one came."""

from __future__ import annotations

import weakref
from typing import final

from torch import Tensor


@final
class LastGradient:
    """The gradient as the last backward left it, to tell an unchanged one from one that `zero_grad` threw away."""

    def __init__(self) -> None:
        self._gradient: weakref.ref[Tensor] | None = None
        self._version = -1

    def __reduce__(self) -> tuple[type[LastGradient], tuple[()]]:
        return LastGradient, ()  # a copied model has gradients of its own

    def remember(self, gradient: Tensor | None) -> None:
        """Take it in."""
        self._gradient = None if gradient is None else weakref.ref(gradient)
        self._version = -1 if gradient is None or gradient.is_inference() else gradient._version

    def is_in(self, gradient: Tensor) -> bool:
        """Whether this is the same tensor, whatever was done to its values (clipping)."""
        return self._gradient is not None and self._gradient() is gradient

    def thrown_away(self, gradient: Tensor | None) -> bool:
        """Whether `zero_grad` was called since: it leaves None or zeros. A zero gradient nobody touched is kept."""
        if gradient is None:
            return True
        if self.is_in(gradient) and gradient._version == self._version:
            return False
        return not bool(gradient.any())
