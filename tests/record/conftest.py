from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import realloc.record.disk as disk

OPERATIONS = {
    "open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate", "listdir", "read",
    "fstat", "lstat",
}  # fmt: skip


class Faulty:
    """Stands in for `os` in disk.py: the n-th operation fails; with ``dead`` every later one too, as after a crash."""

    def __init__(self, fail_at: int = 0, code: int = errno.ENOSPC, dead: bool = False, short: bool = False) -> None:
        self.fail_at, self.code, self.dead, self.short = fail_at, code, dead, short
        self.count = 0
        self.log: list[tuple[str, str]] = []
        self.names: dict[int, str] = {}

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        return self._watched(name, real) if name in OPERATIONS else real

    def _watched(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            self.count += 1
            due = self.fail_at and (self.count == self.fail_at or (self.dead and self.count > self.fail_at))
            subject = self.names.get(args[0], "?") if isinstance(args[0], int) else Path(str(args[0])).name
            self.log.append((name, subject))
            if name == "write" and len(args[1]) > 1 and (due or self.short):  # half of it reaches the disk
                written = real(args[0], args[1][: len(args[1]) // 2])
                if not due:
                    return written
            if due and name == "close":
                real(*args)
            if due:
                raise OSError(self.code, os.strerror(self.code))
            result = real(*args)
            if name == "open":
                self.names[result] = subject
            return result

        return call


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Faulty]:
    def install(fail_at: int = 0, code: int = errno.ENOSPC, dead: bool = False, short: bool = False) -> Faulty:
        stand_in = Faulty(fail_at, code, dead, short)
        monkeypatch.setattr(disk, "os", stand_in)
        return stand_in

    return install
