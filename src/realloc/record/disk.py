"""The only door to the disk: every byte of a record passes through these few functions.

Tests put a stand-in for ``os`` into this module, so that any one operation can fail, fall short or be the last one.
"""

# Every call goes through `os`, which tests replace.
# ruff: noqa: PTH102, PTH104, PTH105, PTH106, PTH108, PTH112, PTH208

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from realloc.errors import RecordError, plain

_SAFE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# A named pipe under a file's name would block an open for ever without O_NONBLOCK.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _SAFE
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFE
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
_CHUNK = 1 << 22


@final
@dataclass(frozen=True)
class Digest:
    """Size in bytes and sha256 (hex) of a file's content."""

    size: int
    sha256: str


def shown(path: Path) -> str:
    r"""Return a path for a message: no control characters.

    >>> shown(Path("run\x1b[2J"))
    "'run[2J'"
    """
    return repr(plain(str(path)))


@contextlib.contextmanager
def told(doing: str, path: Path, remedy: str) -> Iterator[None]:
    """Turn an operating system error into one RecordError: what was done, to what, why not, what to do."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"cannot {doing} {shown(path)}: {error.strerror or error}; {remedy}") from error


def write_new(path: Path, chunks: Iterable[bytes | memoryview]) -> Digest:
    """Write a file that must not exist yet, and return once the disk has it. OSError passes through."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, _NEW, 0o666)
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            rest = memoryview(chunk)
            while len(rest):
                written = os.write(descriptor, rest[:_CHUNK])
                if written <= 0:
                    raise OSError(errno.EIO, "the disk took no bytes")
                rest = rest[written:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Digest(size, digest.hexdigest())


def replace(path: Path, data: bytes) -> None:
    """Write a file so that at every instant it is the old one or the new one, whole. OSError passes through."""
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        write_new(temporary, [data])
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def append(path: Path, line: bytes, expected: int) -> int:
    """Add one line with one write to a file of ``expected`` bytes, and return its new size. OSError passes through.

    Raises:
        RecordError: the file is not as long as this writer left it.
    """
    descriptor = os.open(path, _APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size != expected:
            raise RecordError(
                f"{shown(path)} is {size} bytes long where this run left it at {expected}: another process wrote to "
                "it, or a failed write left half a line; end the other process, then resume the run"
            )
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes of a line fitted")
        except OSError:
            with contextlib.suppress(OSError):  # take half a line back; a reader copes with it where this fails too
                os.ftruncate(descriptor, size)
            raise
        return size + written
    finally:
        os.close(descriptor)


def touch(path: Path) -> None:
    """Make sure that a plain file is there and can be added to. OSError passes through.

    Raises:
        RecordError: it is something else, such as a device.
    """
    descriptor = os.open(path, _APPEND, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RecordError(f"{shown(path)} is no plain file; choose another path")
    finally:
        os.close(descriptor)


def cut(path: Path, offset: int) -> None:
    """Shorten a file to ``offset`` bytes, durably. OSError passes through."""
    descriptor = os.open(path, os.O_RDWR | _SAFE)
    try:
        os.ftruncate(descriptor, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> int:
    """Wait until the disk has a file's content, and return its size. OSError passes through."""
    descriptor = os.open(path, os.O_RDWR | _SAFE)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the disk has a folder's names (a rename is durable only then). OSError passes through."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably. OSError passes through."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        sync_folder(folder.parent)


def rename(old: Path, new: Path) -> None:
    """Rename within one folder, durably. OSError passes through."""
    os.rename(old, new)
    sync_folder(new.parent)


def remove(path: Path) -> None:
    """Remove a folder and what it holds; links are removed, not followed. OSError passes through."""
    if path.is_symlink():
        path.unlink()
        return
    for name in os.listdir(path):
        inner = path / name
        if stat.S_ISDIR(os.lstat(inner).st_mode):
            remove(inner)
        else:
            os.unlink(inner)
    os.rmdir(path)


def read(path: Path, most: int) -> bytes:
    """Read a plain file of at most ``most`` bytes; its size is looked at before any memory is taken.

    Raises:
        RecordError: not a plain file, or too large. OSError passes through.
    """
    descriptor = _open_plain(path)
    try:
        size = os.fstat(descriptor).st_size
        if size > most:
            raise RecordError(f"{shown(path)} is {size} bytes, more than the {most} that realloc writes; it is foreign")
        data = bytearray()
        while len(data) <= most and (chunk := os.read(descriptor, _CHUNK)):
            data += chunk
        return bytes(data)
    finally:
        os.close(descriptor)


def digest(path: Path) -> Digest:
    """Hash a plain file, a few megabytes at a time.

    Raises:
        RecordError: not a plain file. OSError passes through.
    """
    total, size = hashlib.sha256(), 0
    descriptor = _open_plain(path)
    try:
        while chunk := os.read(descriptor, _CHUNK):
            total.update(chunk)
            size += len(chunk)
    finally:
        os.close(descriptor)
    return Digest(size, total.hexdigest())


def size_of(path: Path) -> int:
    """Size of a file in bytes, without opening it. OSError passes through."""
    return os.lstat(path).st_size


def _open_plain(path: Path) -> int:
    descriptor = os.open(path, _READ)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RecordError(f"{shown(path)} is not a plain file; realloc did not write it: remove it")
    return descriptor
