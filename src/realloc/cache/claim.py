"""A file that belongs to one table at a time: two that wrote into it would read each other's rows."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import weakref
from pathlib import Path
from typing import Final, final

import torch

from realloc.errors import ConfigError, StateError, plain

if sys.platform != "win32":
    import fcntl

ORPHANS: Final = 8.0  # seconds: workers of a killed run hold its lock until they notice
_OURS: set[tuple[int, int]] = set()  # device and inode of what this process holds


@final
class Claim:
    """Holds a file, which it makes, until `release`, until nobody has the claim, or until its process ends.

    Nothing is written to it here: whether it may be is another question (`realloc.cache.mark`).

    The lock is an flock on the file itself. On a system or a disk that has none, nothing keeps two apart.

    Raises:
        ConfigError: another table has the file, or it cannot be opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows"
        >>> claim = Claim(path)
        >>> path.unlink(), claim.stands
        (None, False)
        >>> claim.release()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise ConfigError(
                f"the cache file {plain(str(path))!r} cannot be opened: {error.strerror}; name another one"
            ) from error
        found = os.fstat(self._file)
        identity = (found.st_dev, found.st_ino)
        try:
            _lock(self._file, path, identity)
        except BaseException:
            os.close(self._file)
            raise
        _OURS.add(identity)
        self._end = weakref.finalize(self, _release, self._file, identity, os.getpid())

    @property
    def descriptor(self) -> int:
        """Of the open file.

        Raises:
            StateError: it was let go.
        """
        if not self._end.alive:
            raise StateError(f"the cache file {plain(str(self.path))!r} was let go; attach() the model again")
        return self._file

    @property
    def stands(self) -> bool:
        """Whether the path still names the file that is held: a user may delete it at any time."""
        try:
            return self._end.alive and os.path.samestat(os.fstat(self._file), self.path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Let go; twice does no harm."""
        self._end()


def own(file: Path) -> Path:
    """The file of this process: two that wrote into one would read each other's rows. Rank 0 has the name as it is."""
    rank = (
        torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    )
    return file.with_name(f"{file.name}.rank{rank}") if rank else file


def _lock(file: int, path: Path, identity: tuple[int, int]) -> None:
    if _locked(file):
        return
    gc.collect()  # a model that is gone may wait for it: model and hooks hold each other
    until = time.monotonic() + ORPHANS
    while not _locked(file):
        ours = identity in _OURS
        if ours or time.monotonic() > until:
            owner = "another model of this process: detach() its handle" if ours else "another process: wait for it"
            raise ConfigError(
                f"the cache file {plain(str(path))!r} is in use by {owner}, or give each model a file of its own"
            )
        time.sleep(0.2)


def _locked(file: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a disk without locks: as on a system without them
            return True
    return True


def _release(file: int, identity: tuple[int, int], owner: int) -> None:
    if os.getpid() == owner:  # a forked worker shares the lock, and must not end it
        _OURS.discard(identity)
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
