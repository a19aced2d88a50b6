"""Ragged rows of activations, by key: without padding, in memory or in a file, never above a limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor

import realloc.cache.index as index
from realloc.cache.keys import Example
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
        file: where the table lies, memory-mapped; None: in memory, of which only what was written is taken.

    Raises:
        ConfigError: an unknown dtype, or a limit below one token.

    Example:
        >>> from realloc.cache.keys import examples_of
        >>> rows = Rows(width=2, limit=1000)
        >>> example, = examples_of(torch.tensor([[7, 8, 9]]))
        >>> rows.write(example, torch.ones(3, 2)), rows.has(example)
        (True, True)
        >>> rows.read([example], columns=4)[0, :, 0]
        tensor([1., 1., 1., 0.])
    """

    def __init__(self, width: int, limit: int, dtype: str = "float16", file: Path | None = None) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"cache dtype is {dtype!r}; use one of {', '.join(DTYPES)}")
        self.dtype = DTYPES[dtype]
        self.token_bytes = width * self.dtype.itemsize
        self.room = limit // max(1, self.token_bytes)  # tokens
        if width < 1 or self.room < 1:
            raise ConfigError(
                f"a cache of {limit:,} bytes holds no token of {self.token_bytes:,} bytes; raise the limit"
            )
        self.width = width
        self.file = file
        self.tokens = 0
        self.refused = 0  # examples that found no room
        self._places: dict[bytes, tuple[int, int]] = {}
        count = self.room * width
        self._table = (
            torch.empty(count, dtype=self.dtype)
            if file is None
            else torch.from_file(str(file), shared=True, size=count, dtype=self.dtype)
        ).view(self.room, width)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def bytes(self) -> int:
        """Bytes written."""
        return self.tokens * self.token_bytes

    def has(self, example: Example) -> bool:
        """Whether it can be read."""
        return example.key in self._places

    def write(self, example: Example, activations: Tensor) -> bool:
        """Keep the activations ``[length, width]`` of an example. False: there is no room, or it is here already."""
        if activations.shape != (example.length, self.width):
            raise ConfigError(f"activations are {tuple(activations.shape)}, not {(example.length, self.width)}")
        if self.has(example):
            return False
        last = self.tokens + example.length
        if last > self.room:
            self.refused += 1
            return False
        self._table[self.tokens : last] = activations.detach().to(self.dtype)
        self._places[example.key] = (self.tokens, last)
        self.tokens = last
        return True

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
        return activations.to(self.dtype).to(activations.dtype)

    def seal(self) -> tuple[int, int, int]:
        """Make the file and its index whole on disk. Returns examples, tokens, and the digest of both.

        The table only grows, so what a checkpoint sealed stays there while the run goes on.
        """
        sizes = [last - first for first, last in self._places.values()]
        if self.file is not None:
            index.write(self.file, list(self._places), sizes)
            index.sync(self.file)
        return len(sizes), self.tokens, index.digest_of(list(self._places), sizes, self._table[: self.tokens])

    def reopen(self, examples: int, tokens: int, sealed: int) -> bool:
        """Take up what was sealed. False, and empty, where the file does not hold it any more."""
        self.clear()
        if self.file is None or not examples:
            return False
        found = index.read(self.file, examples)
        if found is None or sum(found[1]) != tokens or tokens > self.room:
            return False
        keys, sizes = found
        if index.digest_of(keys, sizes, self._table[:tokens]) != sealed:
            return False
        for key, size in zip(keys, sizes, strict=True):
            self._places[key] = (self.tokens, self.tokens + size)
            self.tokens += size
        return True

    def clear(self) -> None:
        """Forget everything, as when a weight below has changed."""
        self._places.clear()
        self.tokens = self.refused = 0
