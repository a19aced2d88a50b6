"""The rows of one frozen prefix and how often they were found: written once, read in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, final

import torch
from torch import Tensor

from realloc.cache.claim import own
from realloc.cache.keys import Example
from realloc.cache.rows import Rows
from realloc.cache.settings import Cache

FEW: Final = 0.2  # share of hits under which reading does not pay


class Sealed(NamedTuple):
    """What a checkpoint holds of a table in a file: zeros where there is none."""

    examples: int = 0
    tokens: int = 0
    digest: int = 0
    visits: int = 0
    hits: int = 0
    second: int = 0  # hits in the second epoch
    refused: int = 0  # examples that found no room


@final
class Store:
    """Activations by example, in the shape that a batch needs.

    Args:
        cache: the user's words.
        shape: of one token's activations: ``(width,)`` of a transformer.
        ragged: whether a row is as long as its example; else it is one token.
        made: a digest of what the activations are made with.
    """

    def __init__(self, cache: Cache, shape: tuple[int, ...], *, ragged: bool, made: int = 0) -> None:
        self.shape = shape
        self.ragged = ragged
        self.epoch = cache.epoch
        self._begun = cache.epoch or 0  # visits at which the second epoch begins
        self.visits = self.hits = 0
        self._second = 0
        file = None if cache.file is None else own(Path(cache.file))
        self.rows = Rows(torch.Size(shape).numel(), cache.bytes, cache.dtype, file, made)

    def seal(self) -> Sealed:
        """What the file holds now, and how often rows were found: whether reading pays is judged by that."""
        examples, tokens, digest = self.rows.seal()
        if not examples:
            return Sealed()
        return Sealed(examples, tokens, digest, self.visits, self.hits, self._second, self.rows.refused)

    def reopen(self, sealed: Sealed) -> None:
        """Take up what a checkpoint sealed, if it is still there; a table that starts anew counts anew."""
        if self.rows.reopen(sealed.examples, sealed.tokens, sealed.digest):
            self.visits, self.hits, self._second = sealed.visits, sealed.hits, sealed.second
            self.rows.refused = sealed.refused

    def missing(self, examples: Sequence[Example]) -> list[int]:
        """Which of a batch must be computed. Counts them as visited."""
        missing = [i for i, example in enumerate(examples) if not self.rows.has(example)]
        hits, before = len(examples) - len(missing), self.visits
        self.visits += len(examples)
        self.hits += hits
        if self.epoch is not None and self._begun <= before < self._begun + self.epoch:
            self._second += hits
        return missing

    @property
    def pays(self) -> bool:
        """False once an epoch after the first has found under 20 % of its examples.

        Where the length of an epoch is unknown, what was visited since the table is full is judged instead.
        """
        if self.epoch is not None:
            return self.visits < self._begun + self.epoch or self._second >= FEW * self.epoch
        full = self.rows.refused > max(1000, len(self.rows))
        return not full or self.hits >= FEW * self.visits

    def tell(self, epoch: int) -> None:
        """How many examples an epoch has, of which one is just over: the next one is judged."""
        self.epoch, self._begun, self._second = epoch, self.visits, 0

    def keep(self, examples: Sequence[Example], found: Tensor) -> None:
        """Write what was computed for some rows, as far as there is room."""
        for row, example in enumerate(examples):
            part = found[row, example.first : example.last] if self.ragged else found[row][None]
            self.rows.write(example, part.reshape(example.length, -1))

    def batch(
        self, examples: Sequence[Example], columns: int, missing: Sequence[int], found: Tensor | None, like: Tensor
    ) -> Tensor:
        """What the prefix gives for a batch, as a reader gets it: rounded, also where it was computed just now.

        Args:
            examples: of the batch.
            columns: tokens of a row with its padding.
            missing: rows that were computed.
            found: what was computed for them, or None.
            like: of the dtype and on the device that is wanted.
        """
        stored = [i for i, example in enumerate(examples) if self.rows.has(example)]
        out = self.rows.read([examples[i] for i in stored], columns, like.dtype)
        if len(stored) < len(examples):
            whole = torch.zeros(len(examples), *out.shape[1:], dtype=like.dtype)
            whole[stored] = out
            assert found is not None
            for row, i in enumerate(missing):
                one = examples[i]
                if not self.rows.has(one):
                    part = found[row, one.first : one.last] if self.ragged else found[row][None]
                    whole[i, one.first : one.last] = self.rows.rounded(part.reshape(one.length, -1)).cpu()
            out = whole
        return out.view(len(examples), *((columns,) if self.ragged else ()), *self.shape).to(like.device)
