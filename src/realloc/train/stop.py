"""Ctrl-C between two steps, never inside one: the state that is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, final


@final
class Interrupted(Exception):
    """The user asked to stop; what could be saved has been saved."""

    def __init__(self, step: int, folder: str | None) -> None:
        saved = f"; a checkpoint is written, go on with: realloc resume {folder}" if folder else ""
        super().__init__(f"interrupted after step {step:,}{saved}")


@final
class Stop:
    """While open, the first Ctrl-C only sets ``asked`` and calls ``then``; a second one interrupts at once."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.asked = False
        self._then = then
        self._before: Any = None
        self._ours = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._ours:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            # None: the handler before was not set from Python and cannot be put back
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._before is None else self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True
        if self._then is not None:
            self._then()
