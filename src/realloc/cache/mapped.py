"""A table of activations in a file: mapped into memory, its place on the disk reserved before it is written."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from typing import Final, final

import torch

from realloc.cache.claim import Claim
from realloc.cache.mark import begin
from realloc.errors import ConfigError, plain

BLOCK: Final = 1 << 24  # bytes that are reserved at once: the limit may be far above what a run writes
_NONE: Final = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM}  # no such call


@final
class Mapped:
    """The numbers of a table in a claimed file.

    A write to mapped memory that the disk has no place for ends the process (SIGBUS), so the place is asked for first.
    Where a system or a disk cannot reserve, nothing keeps from that.

    Args:
        claim: of the file; it gets our mark if it is empty, and becomes as long as the table.
        count: numbers.
        dtype: of each.

    Raises:
        ConfigError: the file is somebody else's, or cannot be so long.
    """

    def __init__(self, claim: Claim, count: int, dtype: torch.dtype) -> None:
        self.size = count * dtype.itemsize
        self.reserved = 0  # bytes of the table
        self.refusal = ""  # the system's words, once it had no more room
        self._claim = claim
        file = claim.descriptor
        self._start = begin(file, claim.path, self.size)
        end = self._start + self.size
        try:
            if os.fstat(file).st_size < end:
                os.ftruncate(file, end)
            memory = mmap.mmap(file, end)
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"the cache file {plain(str(claim.path))!r} cannot be {self.size:,} bytes: {error}; lower the limit, "
                "or name a file on another disk"
            ) from error
        self.numbers = torch.frombuffer(memory, dtype=dtype, count=count, offset=self._start)

    def reserve(self, first: int, last: int) -> bool:
        """Whether the disk has a place for the bytes of the table up to ``last``. Once it refused, it has none.

        Args:
            first: what lies below is written.
            last: a block more is asked for.
        """
        if last <= self.reserved:
            return True
        if self.refusal:
            return False
        wanted = min(self.size, last + BLOCK)
        ask = getattr(os, "posix_fallocate", None)
        try:
            if ask is not None:
                ask(self._claim.descriptor, self._start + self.reserved, wanted - self.reserved)
        except OSError as error:
            if error.errno not in _NONE:
                self.refusal = error.strerror or str(error)
                self._give_back(max(first, self.reserved))
                return False
            ask = None
        self.reserved = self.size if ask is None else wanted
        return True

    def _give_back(self, kept: int) -> None:
        """What a disk gave before it refused: others need it, for a checkpoint perhaps."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._claim.descriptor, self._start + kept)
            os.ftruncate(self._claim.descriptor, self._start + self.size)  # as long as what is mapped
