"""Whether a gradient was thrown away before the next one came, or set by hand."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import final

from torch import Tensor


@final
class LastGradient:
    """The gradient of one parameter as it was last seen: which tensor, and its version."""

    def __init__(self) -> None:
        self._gradient: weakref.ref[Tensor] | None = None
        self._version = -1

    def __reduce__(self) -> tuple[type[LastGradient], tuple[()]]:
        return LastGradient, ()  # a copied model has gradients of its own

    def remember(self, gradient: Tensor | None) -> None:
        """Take it in."""
        self._gradient = None if gradient is None else weakref.ref(gradient)
        self._version = -1 if gradient is None or gradient.is_inference() else gradient._version

    def _same(self, gradient: Tensor) -> bool:
        return self._gradient is not None and self._gradient() is gradient

    def thrown_away(self, gradient: Tensor | None, was_zero: Callable[[], bool]) -> bool:
        """Whether `zero_grad` was called since: it leaves None or zeros.

        ``was_zero``: whether it was all zeros when it was remembered; asked only where nothing else tells
        (``p.grad.data.zero_()`` leaves no trace).
        """
        if gradient is None:
            return True
        if bool(gradient.any()):
            return False
        return not self._same(gradient) or gradient._version != self._version or not was_zero()

    def set_by_hand(self, gradient: Tensor) -> bool:
        """Where no backward came since: whether it is another tensor, or has other values, and not only zeros."""
        return not self._same(gradient) or (gradient._version != self._version and bool(gradient.any()))
