"""Whether an nn.Sequential whose widths move runs as a whole: else others may read its units, and nobody knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch.utils.hooks import RemovableHandle

from realloc.errors import ConfigError, plain


@final
class Whole:
    """Looks at the forwards of one nn.Sequential before the first step, and goes.

    Its layers alone say what they make and read. A model that calls one of them by itself (``self.body[:2](x)``) may
    have a reader of its own there, whose shape would not follow.
    """

    def __init__(self, name: str, method: str, over: Callable[[], bool]) -> None:
        self.name, self.method, self.over = name, method, over
        self.hooks: Sequence[RemovableHandle] = ()
        self._depth = 0  # forwards of the whole that have begun and not ended

    def enter(self) -> None:
        """Before a forward of the whole."""
        if torch.compiler.is_compiling():
            return
        self._depth += 1
        if self.over():
            for hook in self.hooks:
                hook.remove()

    def leave(self) -> None:
        """After it, even one that failed."""
        if not torch.compiler.is_compiling():
            self._depth = max(0, self._depth - 1)

    def look(self, layer: str) -> None:
        """Before a forward of one of its layers.

        Raises:
            ConfigError: it is called by itself.
        """
        if self._depth or torch.compiler.is_compiling() or not torch.is_grad_enabled() or self.over():
            return
        raise ConfigError(
            f"{plain(layer)} runs by itself, outside the forward of {plain(self.name)}, the nn.Sequential it is in: "
            f"who else reads its units there is not known, and would break when {self.method} moves them. Look at the "
            "whole model with method.on(example=inputs), leave it out with method.on(exclude=...), or call the whole "
            "nn.Sequential; only to see what it gives, call it under torch.no_grad()"
        )
