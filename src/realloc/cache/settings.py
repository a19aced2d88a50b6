"""What a user says about the cache of a frozen prefix."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, final

import realloc.cache.mark as mark
from realloc.cache.claim import own
from realloc.cache.known import Known
from realloc.cache.rows import DTYPES
from realloc.errors import ConfigError, plain
from realloc.sizes import bytes_in

COMPUTE: Final = ("float32", "bfloat16")
TOLD: Final = sys.maxsize  # examples of an epoch whose end a callback will tell


@final
@dataclass(frozen=True)
class Cache:
    """Where the activations of a frozen prefix lie, how they are rounded, and how much they may take.

    Args:
        limit: bytes, as a number or as words such as "500MB". When it is reached, or the disk of a file has no more
            room, what is there stays, and the other examples are computed anew each time.
        dtype: float16, bfloat16 or float32; what is kept of an activation, also for the step that computed it.
        file: a path; the table lies there, memory-mapped, and a checkpoint finds it again. None: in memory. What is
            there already must be empty or a cache of ours, and so must the index beside it (``rows.index``); other
            files are refused. Of several processes rank 0 uses the name as it is, the others add theirs
            (``rows.rank1``).
        epoch: examples in one epoch, if known: the cache switches itself off where the second one finds under 20 %.
        compute: float32, or bfloat16 to run the prefix under autocast, where the processor gains by it.
        known: what was computed of some examples already, with the weights that the model has; it is taken over.

    Raises:
        ConfigError: a value that is none of these.

    >>> Cache(limit="2MB").bytes
    2000000
    """

    limit: int | str = "1GB"
    dtype: str = "float16"
    file: Path | str | None = None
    epoch: int | None = None
    compute: Literal["float32", "bfloat16"] = "float32"
    known: Known | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"cache dtype is {self.dtype!r}; use one of {', '.join(DTYPES)}")
        if self.compute not in COMPUTE:
            raise ConfigError(f"cache compute is {self.compute!r}; use one of {', '.join(COMPUTE)}")
        if self.epoch is not None and (
            isinstance(self.epoch, bool) or not isinstance(self.epoch, int) or self.epoch < 1
        ):
            raise ConfigError(f"cache epoch is {self.epoch!r}; it is the number of examples in one epoch")
        if self.bytes < 1:
            raise ConfigError(
                f"cache limit is {self.limit!r}; it is a number of bytes above 0, or words such as '500MB'"
            )

    @property
    def bytes(self) -> int:
        """The limit as a number; 0 where it cannot be read."""
        if isinstance(self.limit, int):
            return 0 if isinstance(self.limit, bool) else max(0, self.limit)
        limit = str(self.limit)
        return bytes_in(limit) or bytes_in(limit + "B") or 0  # without a unit they are bytes

    def check_file(self) -> None:
        """Refuse a file that cannot be made, or that would be overwritten.

        Raises:
            ConfigError: it is a folder, or its folder is missing or may not be written; the file or the index beside it
                is there and is not ours.
        """
        if self.file is None:
            return
        file = own(Path(self.file))
        folder, name = file.absolute().parent, plain(str(file))
        if file.is_dir():
            raise ConfigError(f"the cache file {name!r} is a folder; name a file in it")
        if not folder.is_dir():
            raise ConfigError(f"the cache file {name!r} has no folder to lie in; make {plain(str(folder))!r} first")
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"the cache file {name!r} cannot be made: {plain(str(folder))!r} may not be written")
        mark.check(file)


USUAL: Final = Cache()
