"""Batches of tokens, bucketed by length: a function of (seed, step), so that a resume has nothing to restore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.errors import ConfigError, plain
from realloc.finetune.texts import Row
from realloc.rng import stream

CHUNK: Final = 20  # batches that are sorted by length together

Batch = dict[str, Tensor]


def tokenise(rows: Sequence[Row], tokenizer: Any, most: int) -> list[list[int]]:
    """Token numbers of each text, cut at ``most``.

    Raises:
        ConfigError: a text without a token, or so few tokens that no text could have one.
    """
    if not rows:
        return []
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if most <= special:
        raise ConfigError(
            f"--tokens {most} leaves no room for a text: this model puts {special} tokens of its own around each; take "
            f"--tokens {special + 1} or more"
        )
    found: list[list[int]] = tokenizer([row.text for row in rows], truncation=True, max_length=most)["input_ids"]
    for row, tokens in zip(rows, found, strict=True):
        if len(tokens) <= special:
            raise ConfigError(
                f"{row.place}: the text '{plain(row.text)[:40]}' has no token of this model; drop the row"
            )
    return found


def chunked(rows: Sequence[Row], tokenizer: Any, most: int) -> list[list[int]]:
    """All texts one after the other, cut into pieces of ``most`` tokens, for a causal language model.

    Where the tokenizer has an end-of-text token, it stands between two texts.
    """
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    found = tokenizer([row.text for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
    whole: list[int] = []
    for number, tokens in enumerate(found):
        whole += (end if number else []) + tokens
    return [piece for i in range(0, len(whole), most) if len(piece := whole[i : i + most]) > 1]


@final
class Batches:
    """Shuffled batches whose rows are about as long as each other; none is dropped.

    Each epoch: a permutation, cut into chunks of 20 batches, each sorted by length, the batches shuffled.
    """

    def __init__(self, rows: Sequence[Sequence[int]], labels: Tensor, size: int, seed: int, pad: int) -> None:
        self.rows, self.labels = rows, labels
        self._size, self._seed, self._pad = size, seed, pad
        self._epoch, self._order = -1, list[list[int]]()
        self.per_epoch = -(-len(rows) // size)

    def at(self, step: int) -> tuple[Batch, Tensor]:
        """The batch of a step, from 0: ``input_ids`` and ``attention_mask`` ``[b, t]``, and its labels."""
        return self.of(self._index(step))

    def padded(self, step: int) -> int:
        """Tokens of the batch of a step, padding included: what its time goes with."""
        index = self._index(step)
        return len(index) * max(len(self.rows[i]) for i in index)

    def _index(self, step: int) -> list[int]:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._ordered(epoch)
        return self._order[place]

    def _ordered(self, epoch: int) -> list[list[int]]:
        draw = stream(self._seed, "order", "", epoch)
        order = torch.randperm(len(self.rows), generator=draw).tolist()
        found = []
        for first in range(0, len(order), self._size * CHUNK):
            chunk = sorted(order[first : first + self._size * CHUNK], key=lambda i: len(self.rows[i]))
            found += [chunk[i : i + self._size] for i in range(0, len(chunk), self._size)]
        return [found[i] for i in torch.randperm(len(found), generator=draw).tolist()]

    def by_length(self, part: slice = slice(None)) -> list[int]:
        """Some of the rows, or all, the shortest first."""
        return sorted(range(len(self.rows))[part], key=lambda i: len(self.rows[i]))

    def middling(self, count: int | None = None) -> tuple[Batch, Tensor]:
        """So many rows of middling length, or a whole batch; the same each time: to time a step by."""
        count = self._size if count is None else count
        order = self.by_length()
        first = max(0, min(len(order) // 2, len(order) - count))
        return self.of(order[first : first + count])

    def of(self, index: Sequence[int]) -> tuple[Batch, Tensor]:
        """The rows of some numbers, padded on the right to the longest."""
        longest = max(len(self.rows[i]) for i in index)
        ids = torch.full((len(index), longest), self._pad, dtype=torch.int64)
        mask = torch.zeros(len(index), longest, dtype=torch.int64)
        for row, i in enumerate(index):
            tokens = self.rows[i]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}, self.labels[list(index)]

    def sorted(self, size: int, part: slice = slice(None)) -> Iterator[tuple[list[int], Batch, Tensor]]:
        """Some of the rows in batches by length, for judging: which rows, the batch, and its labels."""
        order = self.by_length(part)
        for first in range(0, len(order), size):
            index = order[first : first + size]
            yield index, *self.of(index)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(map(len, self.rows))
