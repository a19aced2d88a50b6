"""What shows that a file is a cache of ours: a mark at its head. Anybody else's file is refused, never written to."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import realloc.cache.index as index
from realloc.errors import ConfigError, plain

MARK: Final = b"realloc cache of activations: computed anew where it is gone".ljust(63) + b"\n"
_LOOK: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def check(table: Path) -> None:
    """Refuse what may not become a table, nor its neighbour an index. What is empty or not there yet may.

    Raises:
        ConfigError: one of them is somebody else's file, or cannot be read.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "rows"
    >>> check(file)
    >>> _ = file.write_text("mine")
    >>> check(file)
    Traceback (most recent call last):
        ...
    realloc.errors.ConfigError: the cache file 'rows' is no cache of ours, and would be overwritten: name another \
file, or delete it if you do not need it
    """
    index.check(table)
    try:
        if not table.exists():  # or a link: what it points to is made
            return
        if not table.is_file():  # opening a pipe or a device may do something
            raise _foreign(table)
        file = os.open(table, _LOOK)
        try:
            head = _head(file)
        finally:
            os.close(file)
    except OSError as error:
        raise ConfigError(
            f"the cache file {plain(str(table))!r} cannot be read: {error.strerror}; name another one"
        ) from error
    if head not in (b"", MARK) and not index.stands(table):
        raise _foreign(table)


def begin(file: int, table: Path, size: int) -> int:
    """Where in a claimed file its table begins. An empty file gets the mark, before anything else.

    Args:
        file: its descriptor: what is under the name may be exchanged.
        table: its name.
        size: bytes of the table.

    Raises:
        ConfigError: it is somebody else's file, or the disk refuses.
    """
    index.check(table)
    found = os.fstat(file)
    head = _head(file) if stat.S_ISREG(found.st_mode) else b"?"
    if not head:
        _write(file, table)
    elif head != MARK:
        if found.st_size != size or not index.stands(table):
            raise _foreign(table)
        return 0  # made before there was a mark
    return len(MARK)


def _head(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, len(MARK))


def _write(file: int, table: Path) -> None:
    try:
        if os.write(file, MARK) != len(MARK):
            os.ftruncate(file, 0)
            raise OSError("only a part of the mark was written")
        os.fsync(file)  # a table that is there without it would be nobody's
    except OSError as error:
        raise ConfigError(
            f"the cache file {plain(str(table))!r} cannot be written: {error}; make room, or name a file on "
            "another disk"
        ) from error


def _foreign(table: Path) -> ConfigError:
    return ConfigError(
        f"the cache file {plain(table.name)!r} is no cache of ours, and would be overwritten: name another file, or "
        "delete it if you do not need it"
    )
