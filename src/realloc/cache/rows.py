"""Ragged rows of activations, by key: without padding, in memory or in a file, never above a limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

import realloc.cache.index as index
from realloc.cache.claim import Claim
from realloc.cache.keys import Example
from realloc.cache.mapped import Mapped
from realloc.errors import ConfigError

DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@final
class Rows:
    """Activations ``[tokens, width]`` of many examples in one table.

    When it is full, what is there stays and the rest is computed anew each time. A loop visits every example once an
    epoch: whatever was thrown out to make room would be the next to be asked for, and nothing would ever be found.

    Args:
        width: numbers of one token.
        limit: bytes that the table may take.
        dtype: float16, bfloat16 or float32. A reader gets what was rounded to it, also right after writing.
            Where that overflows, an example is not kept, and stays as it was computed.
        file: where the table lies, memory-mapped, behind a mark; None: in memory. Of memory, and of a disk that can
            reserve, only what was written is taken, and a block more. Where the disk has no more, the table is full.
        made: a digest of what the activations were made with; it goes into the seal.

    Raises:
        ConfigError: an unknown dtype, a limit below one token, or a file that is in use, is not ours or cannot be made.

    Example:
        >>> from realloc.cache.keys import examples_of
        >>> rows = Rows(width=2, limit=1000)
        >>> example, = examples_of(torch.tensor([[7, 8, 9]]))
        >>> rows.write(example, torch.ones(3, 2)), rows.has(example)
        (True, True)
        >>> rows.read([example], columns=4)[0, :, 0]
        tensor([1., 1., 1., 0.])
    """

    def __init__(self, width: int, limit: int, dtype: str = "float16", file: Path | None = None, made: int = 0) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"cache dtype is {dtype!r}; use one of {', '.join(DTYPES)}")
        self.dtype = DTYPES[dtype]
        self.token_bytes = width * self.dtype.itemsize
        self.room = room_of(width, limit, dtype)
        self.width = width
        self.file = file
        self.made = made
        self.tokens = 0
        self.refused = 0  # examples that found no room, or overflowed
        self.overflowed = 0
        self._places: dict[bytes, tuple[int, int]] = {}
        self._claim = None if file is None else Claim(file)
        self._mapped: Mapped | None = None
        self._table = self._new_table()

    def _new_table(self) -> Tensor:
        count = self.room * self.width
        if self._claim is None:
            try:
                return torch.empty(count, dtype=self.dtype).view(self.room, self.width)
            except RuntimeError as error:
                size = count * self.dtype.itemsize
                raise ConfigError(
                    f"there is no memory for a cache of {size:,} bytes; lower its limit, or name a file for it"
                ) from error
        try:
            self._mapped = Mapped(self._claim, count, self.dtype)
        except ConfigError:
            self.close()
            raise
        return self._mapped.numbers.view(self.room, self.width)

    def close(self) -> None:
        """Let another table have the file; nothing is written after it."""
        if self._claim is not None:
            self._claim.release()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def bytes(self) -> int:
        """Bytes written."""
        return self.tokens * self.token_bytes

    @property
    def refusal(self) -> str:
        """What the system said when the disk had no more room; empty while it has."""
        return "" if self._mapped is None else self._mapped.refusal

    def has(self, example: Example) -> bool:
        """Whether it can be read."""
        return example.key in self._places

    def write(self, example: Example, activations: Tensor) -> bool:
        """Keep the activations ``[length, width]`` of an example.

        Returns:
            False where there is no room (on the disk neither), it is here already, or it overflows the dtype.
        """
        if activations.shape != (example.length, self.width):
            raise ConfigError(f"activations are {tuple(activations.shape)}, not {(example.length, self.width)}")
        if self.has(example):
            return False
        cast = self._cast(activations.detach())
        last = self.tokens + example.length
        self.overflowed += cast is None
        if cast is None or last > self.room or not self._placed(last):
            self.refused += 1
            return False
        self._table[self.tokens : last] = cast
        self._places[example.key] = (self.tokens, last)
        self.tokens = last
        return True

    def _placed(self, last: int) -> bool:
        """Whether the disk has a place for so many tokens; if not, what it gave is all the room from here on."""
        if self._mapped is None or self._mapped.reserve(self.bytes, last * self.token_bytes):
            return True
        self.room = max(self.tokens, self._mapped.reserved // self.token_bytes)
        return False

    def read(self, examples: Sequence[Example], columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[b, columns, width]``: each example where it lies in its row, zeros elsewhere.

        Raises:
            KeyError: one was never written.
        """
        out = torch.zeros(len(examples), columns, self.width, dtype=dtype)
        places = [self._places[example.key] for example in examples]
        tokens = torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(a, b) for a, b in places)])
        inside = torch.zeros(len(examples), columns, dtype=torch.bool)
        for row, example in enumerate(examples):
            inside[row, example.first : example.last] = True
        out[inside] = self._table.index_select(0, tokens).to(dtype)
        return out

    def rounded(self, activations: Tensor) -> Tensor:
        """What a reader would get: a miss must train on it too, or two epochs see two models."""
        cast = self._cast(activations)
        return activations if cast is None else cast.to(activations.dtype)

    def _cast(self, activations: Tensor) -> Tensor | None:
        """None where a finite number would become infinite."""
        cast = activations.to(self.dtype)
        return cast if fits(cast, activations) else None

    def seal(self) -> tuple[int, int, int]:
        """Make the file and its index whole on disk. Returns examples, tokens, and the digest of both.

        The table only grows, so what a checkpoint sealed stays there while the run goes on. Zeros where it is empty, or
        its file was deleted.
        """
        if not self._places or (self._claim is not None and not self._claim.stands):
            return 0, 0, 0
        keys, sizes = list(self._places), [last - first for first, last in self._places.values()]
        if self.file is not None:
            index.write(self.file, keys, sizes)
            index.sync(self.file)
        return len(sizes), self.tokens, index.digest_of(keys, sizes, self._table[: self.tokens], self.made)

    def reopen(self, examples: int, tokens: int, sealed: int) -> bool:
        """Take up what was sealed. False, and empty, where the file does not hold it any more."""
        self.clear()
        if self.file is None or not 0 < examples <= tokens <= self.room:
            return False
        found = index.read(self.file, examples)
        if found is None or sum(found[1]) != tokens:
            return False
        keys, sizes = found
        if index.digest_of(keys, sizes, self._table[:tokens], self.made) != sealed:
            return False
        for key, size in zip(keys, sizes, strict=True):
            self._places[key] = (self.tokens, self.tokens + size)
            self.tokens += size
        return True

    def clear(self) -> None:
        """Forget everything, as when a weight below has changed."""
        self._places.clear()
        self.tokens = self.refused = self.overflowed = 0


def fits(cast: Tensor, activations: Tensor) -> bool:
    """Whether no finite number became infinite.

    >>> large = torch.tensor([7e4, float("inf")])
    >>> fits(large.half(), large), fits(large.bfloat16(), large)
    (False, True)
    """
    return bool(cast.isfinite().all()) or bool((cast.isfinite() == activations.isfinite()).all())


def room_of(width: int, limit: int, dtype: str) -> int:
    """Tokens of so many numbers that a limit has room for.

    Raises:
        ConfigError: not one.
    """
    token = width * DTYPES[dtype].itemsize
    room = limit // max(1, token)
    if width < 1 or room < 1:
        raise ConfigError(f"a cache of {limit:,} bytes holds no token of {token:,} bytes; raise the limit")
    return room
