"""Activations that were computed before a prefix was frozen: by the probes that said where to freeze it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from realloc.cache.keys import Example, examples_of
from realloc.cache.rows import fits


@final
class Known:
    """Rows of a few examples at each depth, as a cache would keep them: without padding, rounded to its dtype.

    An example that overflows it at some depth is left out there: it is computed each time, as in a cache.

    What was computed for a decision need not be computed again for the training that follows it, as long as no weight
    has changed between.

    Args:
        limit: bytes of all depths together; what comes when it is reached is let go.
        dtype: float16, bfloat16 or float32.

    >>> known = Known(limit=1000)
    >>> ids = torch.tensor([[5, 6, 0]])
    >>> batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    >>> known.add(batch, [torch.zeros(1, 3, 2), torch.ones(1, 3, 2), torch.zeros(1, 3, 2)])
    >>> [(example.length, rows.tolist()) for example, rows in known.take(1)]
    [(2, [[1.0, 1.0], [1.0, 1.0]])]
    """

    def __init__(self, limit: int, dtype: torch.dtype = torch.float16) -> None:
        self.limit, self.dtype = limit, dtype
        self._bytes = 0
        self._found: dict[int, list[tuple[Example, Tensor]]] = {}

    def add(self, batch: Mapping[str, Tensor], depths: Sequence[Tensor]) -> None:
        """Take a batch at the depths that a training can start from: between two blocks.

        Args:
            batch: ``input_ids`` and ``attention_mask`` ``[b, t]``.
            depths: ``[b, t, width]`` of each: what enters the lowest block, and what leaves each.
        """
        examples = examples_of(batch["input_ids"], batch.get("attention_mask"))
        sure = [bool(examples) and _within(one, torch.finfo(self.dtype).max) for one in depths[1:-1]]
        for row, example in enumerate(examples):
            size = example.length * sum(one.shape[-1] for one in depths[1:-1]) * self.dtype.itemsize
            if self._bytes + size > self.limit:
                return
            for depth, one in enumerate(depths[1:-1], 1):
                part = one[row, example.first : example.last]
                kept = part.to(self.dtype, copy=True)
                if sure[depth - 1] or fits(kept, part):
                    self._found.setdefault(depth, []).append((example, kept))
                    self._bytes += kept.nbytes

    def __len__(self) -> int:
        """Examples."""
        return max(map(len, self._found.values()), default=0)

    def only(self, depth: int) -> None:
        """Let go of all other depths; 0: of all."""
        self._found = {depth: self._found[depth]} if depth in self._found else {}

    def take(self, depth: int) -> Sequence[tuple[Example, Tensor]]:
        """Hand over the examples of a depth with their rows ``[tokens, width]``, and let go of everything."""
        found, self._found = self._found.get(depth, []), {}
        return found


def _within(found: Tensor, most: float) -> bool:
    """Whether no number is larger, nor NaN; one look at a batch is cheaper than one at each row."""
    lowest, highest = found.aminmax()
    return -most <= float(lowest) and float(highest) <= most
