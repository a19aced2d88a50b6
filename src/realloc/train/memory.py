"""Peak memory of a run, as the kernel counts it: anonymous pages over their number once the data is loaded.

Mapped files (libraries, memory-mapped data) are apart, because they can be dropped and shared at any time.
A sampling thread can miss a peak shorter than its period; callers look by hand (``look``) where they expect one.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from pathlib import Path
from typing import Self, final

PERIOD = 0.01  # seconds between two looks; one look costs some 10 microseconds
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
STATM = Path("/proc/self/statm")


def pages() -> tuple[int, int] | None:
    """Count (anonymous, file) bytes resident now, or None where the system does not say."""
    try:
        _, resident, shared, *_ = STATM.read_text().split()
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * PAGE, int(shared) * PAGE


@final
class Peak:
    """Watch anonymous memory between ``with`` and its end.

    ``bytes`` and ``mapped_bytes`` are the highest values seen over the start, ``training_bytes`` the highest since
    ``training`` was called; None where the system does not say.
    """

    def __init__(self) -> None:
        self._start = self._most = (0, 0)
        self._before = 0
        self._known = False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="realloc-memory", daemon=True)

    def __enter__(self) -> Self:
        _give_back()
        found = pages()
        self._known = found is not None
        self._start = self._most = found or (0, 0)
        if self._known:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look now."""
        found = pages() if self._known else None
        if found is not None:
            with self._lock:
                self._most = (max(self._most[0], found[0]), max(self._most[1], found[1]))

    def training(self) -> None:
        """Building is over: from now on count for ``training_bytes``."""
        self.look()
        _give_back()
        found = pages()
        if self._known and found is not None:
            with self._lock:
                self._before, self._most = self._most[0], (found[0], self._most[1])

    @property
    def bytes(self) -> int | None:
        """Highest anonymous memory over its start, in bytes."""
        return max(0, self._most[0] - self._start[0], self._before - self._start[0]) if self._known else None

    @property
    def training_bytes(self) -> int | None:
        """The same since ``training``: without what building the model and choosing the start took."""
        return max(0, self._most[0] - self._start[0]) if self._known else None

    @property
    def mapped_bytes(self) -> int | None:
        """Highest file-mapped memory over its start, in bytes."""
        return max(0, self._most[1] - self._start[1]) if self._known else None

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            self.look()


def highest(*values: int | None) -> int | None:
    """The highest of what is known; None where nothing is."""
    return max((v for v in values if v is not None), default=None)


def _give_back() -> None:
    # what loading freed must go back to the system, or the run could use it unseen
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
