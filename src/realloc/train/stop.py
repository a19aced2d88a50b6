"""Ctrl-C between two steps, never inside one: the state that is saved is whole."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, final


@final
class Interrupted(Exception):
    """The user asked to stop; what could be saved has been saved, in ``folder`` if there is one."""

    def __init__(self, where: str, folder: str | None, *, saved: bool = False) -> None:
        kept = "a checkpoint is written, " if saved else ""
        remedy = f"; {kept}go on with: realloc resume {shlex.quote(folder)}" if folder else ""
        super().__init__(f"interrupted {where}{remedy}")


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
