"""Whether a gradient was thrown away before the next one came, or set by hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import final

from torch import Tensor


@final
class LastGradient:
    """The gradient of one parameter as the last step left it: which tensor, and its version."""

    def __init__(self) -> None:
        self._gradient: weakref.ref[Tensor] | None = None
        self._version = -1

    def __reduce__(self) -> tuple[type[LastGradient], tuple[()]]:
        return LastGradient, ()  # a copied model has gradients of its own

    def remember(self, gradient: Tensor | None) -> None:
        """Take it in."""
        self._gradient = None if gradient is None else weakref.ref(gradient)
        self._version = -1 if gradient is None or gradient.is_inference() else gradient._version

    def set_by_hand(self, gradient: Tensor) -> bool:
        """Where no backward came since: whether it is another tensor, or has other values, and not only zeros."""
        same = self._gradient is not None and self._gradient() is gradient
        return not same or (gradient._version != self._version and bool(gradient.any()))


def thrown_away(gradient: Tensor | None, was_zero: Callable[[], bool]) -> bool:
    """Whether `zero_grad` was called since the last backward: it leaves None or zeros.

    ``was_zero``: whether that backward brought nothing but zeros; asked only where zeros are found.
    """
    return gradient is None or (not bool(gradient.any()) and not was_zero())
