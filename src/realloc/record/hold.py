"""Holding a folder: one process at a time, for its life."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any, Self, final

from filelock import FileLock, Timeout

import realloc.record.disk as disk
import realloc.record.sealed as sealed
from realloc.errors import RecordError, plain

_LOCK, _OWNER = "run.lock", "owner.json"
FILES = frozenset({_LOCK, _OWNER})
"""Names that a hold leaves in its folder."""
_ORPHAN_SECONDS = 8.0  # workers of a killed run hold its lock until they notice (torch looks every 5 seconds)


@final
class Hold:
    """A folder held by this process. The lock is an flock: it ends with its process, also by `kill -9`.

    Example:
        >>> import tempfile
        >>> hold = Hold.take(Path(tempfile.mkdtemp()))
        >>> hold.release()
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def take(cls, path: Path) -> Self:
        """Take hold of an existing folder. OSError passes through.

        Raises:
            RecordError: it is held, with pid, host and age of the holder.
        """
        # Not thread-local: a folder opened in one thread may be closed in another.
        lock = FileLock(path / _LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, RuntimeError):
            if not _orphaned(path):
                raise RecordError(_held(path)) from None
            try:
                lock.acquire(timeout=_ORPHAN_SECONDS)
            except Timeout:
                raise RecordError(_held(path)) from None
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        try:
            disk.replace(path / _OWNER, sealed.seal(owner))
        except BaseException:
            lock.release()
            raise
        return cls(path, lock)

    def release(self) -> None:
        """Let go; twice does no harm."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self.path / _OWNER).unlink()
            self._lock.release()


def _owner(path: Path) -> dict[str, Any]:
    try:
        return sealed.unseal(disk.read(path / _OWNER, 1 << 12), _OWNER)
    except (OSError, RecordError):  # only for the message: it may be half made at this moment
        return {}


def _orphaned(path: Path) -> bool:
    """Say whether the owner died on this host, so that only its children can still hold the lock."""
    owner = _owner(path)
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _held(path: Path) -> str:
    owner = _owner(path)
    since = owner.get("since")
    age = f", for {_spoken(time.time() - since)}" if isinstance(since, int | float) else ""
    who = f"process {owner['pid']} on {plain(str(owner.get('host')))}" if "pid" in owner else "another process"
    if owner.get("pid") == os.getpid() and owner.get("host") == socket.gethostname():
        return f"{disk.shown(path)} is already open in this process (pid {os.getpid()}{age}); close it first"
    return f"{disk.shown(path)} is in use by {who}{age}; wait for it, end it, or choose another folder"


def _spoken(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
