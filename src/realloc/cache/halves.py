"""The two halves of a base model: the blocks below a frozen end, and those above it, each run without the other."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from realloc.cache.inputs import hidden_of
from realloc.errors import StateError
from realloc.modes import as_it_was

CLOSED, COMPUTE, READ = range(3)


@final
class _Reached(Exception):
    """The end of the prefix was reached; the rest of the model is not run."""


@final
class Halves:
    """What the gates of the blocks ask. Closed, every block runs.

    Args:
        base: the model; it is left as it was by all that is run here.
    """

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.end = 0  # blocks below
        self.mode = CLOSED
        self._parts = 0  # of a block's output; 0: a bare tensor
        self._found: Tensor | None = None
        self._batch: Tensor | None = None
        self._handed = False  # whether the blocks above got it
        self.forward_caches = "use_cache" in inspect.signature(type(base).forward).parameters

    # the gates' questions ---------------------------------------------------------------------------------------

    def passes(self, number: int) -> bool:
        """Whether this gate's block is passed by."""
        return self.mode == READ and number < self.end

    def past(self, number: int, hidden: Any) -> Any:
        """What comes out of it."""
        out = self._batch if number == self.end - 1 else hidden
        self._handed |= number == self.end - 1
        return (out, *[None] * (self._parts - 1)) if self._parts else out

    def through(self, number: int, output: Any) -> None:
        """A block has run; the last one below the end ends the pass.

        Raises:
            StateError: a block above the end ran on something else than what was read.
        """
        if self.mode == READ and not self._handed:
            raise StateError(
                f"{type(self.base).__name__} skipped the last frozen layer, and the layers above it got something else "
                "than its output; train without the cache: cache=None"
            )
        if number == self.end - 1 and self.mode != READ:
            self._parts = len(output) if isinstance(output, tuple) else 0
            if self.mode == COMPUTE:
                self._found = hidden_of(output)
                raise _Reached

    # one half, or both ------------------------------------------------------------------------------------------

    def open(self, hidden: Tensor) -> None:
        """Until it is closed, a call of the base begins above the end, from these activations."""
        self.mode, self._batch, self._handed = READ, hidden, False

    def close(self) -> None:
        """Every block runs again."""
        self.mode, self._batch = CLOSED, None

    def whole(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What the base gives when it does not train."""
        return hidden_of(self._run(args, kwargs, {}))

    def upper(self, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Tensor:
        """The same from the end on."""
        self.open(hidden)
        try:
            return hidden_of(self._run(args, kwargs, {}))
        finally:
            self.close()

    def lower(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Mapping[str, Tensor], *, low: bool
    ) -> Tensor:
        """What leaves the last block below the end, float ``[b, t, width]`` or ``[b, ...]``.

        Args:
            args: of a call of the base.
            kwargs: of the same.
            weights: in place of the base's, by name.
            low: whether to run under autocast in bfloat16.

        Raises:
            StateError: the last of these blocks did not run.
        """
        device = next(self.base.parameters()).device.type
        self.mode, found = COMPUTE, None
        try:
            with torch.autocast(device, torch.bfloat16) if low else nullcontext():
                self._run(args, kwargs, weights)
        except _Reached:
            found, self._found = self._found, None
        finally:
            self.mode = CLOSED
        if found is None:
            raise StateError(
                f"the last frozen layer of {type(self.base).__name__} did not run: it was replaced since attach(), or "
                "this call skips it; detach() the handle and attach() again, or give cache=None"
            )
        return found.float() if low else found

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], weights: Mapping[str, Tensor]) -> Any:
        with torch.no_grad(), as_it_was(self.base):
            self.base.eval()
            return functional_call(self.base, dict(weights), args, self.without_cache(kwargs))

    def without_cache(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keys and values of earlier tokens are of no use in training, and half a model has none."""
        return {**kwargs, "use_cache": False} if self.forward_caches else kwargs


def check_shape(base: nn.Module, found: Tensor, rows: int, columns: int | None) -> None:
    """Refuse activations that have no row for each example, and in it no place for each token.

    Args:
        base: the model, for the words.
        found: what left its lower half.
        rows: examples of the call.
        columns: tokens of a row, or None: a row is one example of any shape.

    Raises:
        StateError: they lie otherwise: tokens before rows (XLNet), fewer tokens than came in (Funnel), or all in one.

    >>> check_shape(nn.Identity(), torch.zeros(2, 5, 8), 2, 5)
    >>> check_shape(nn.Identity(), torch.zeros(5, 2, 8), 2, 5)
    Traceback (most recent call last):
        ...
    realloc.errors.StateError: the frozen layers of Identity give shape (5, 2, 8), the cache takes [2 rows, 5 tokens, \
width]; train without the cache: cache=None
    """
    wanted = (rows,) if columns is None else (rows, columns)
    if tuple(found.shape[: len(wanted)]) != wanted:
        words = f"{rows} rows, ..." if columns is None else f"{rows} rows, {columns} tokens, width"
        raise StateError(
            f"the frozen layers of {type(base).__name__} give shape {tuple(found.shape)}, the cache takes [{words}]; "
            "train without the cache: cache=None"
        )
