"""Top-k of scores that never exist all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from realloc.errors import ConfigError
from realloc.select.selector import check_request
from realloc.select.top_k import top_k


@final
@dataclass(frozen=True, eq=False)
class Best:
    """The best ``k`` units seen so far; merging a block gives the next one.

    Memory is O(k + block). After any blocks in any order, ``indices`` is what ``top_k`` gives on the whole, ties to
    the lower index included.

    >>> best = Best.none(2)
    >>> for start in (0, 2, 4):
    ...     block = torch.tensor([5.0, 1.0, 7.0, 5.0, 0.0, 5.0])[start : start + 2]
    ...     best = best.merged(block, torch.arange(start, start + 2))
    >>> best.indices.tolist(), best.scores.tolist()
    ([0, 2], [5.0, 7.0])
    """

    k: int
    indices: Tensor
    """int64, ascending, at most ``k``."""
    scores: Tensor
    """Their scores."""

    @classmethod
    def none(cls, k: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Self:
        """Start with nothing seen.

        Raises:
            ConfigError: ``k`` below 0.
        """
        if k < 0:
            raise ConfigError(f"k={k}; pass 0 or more units")
        return cls(k, torch.zeros(0, dtype=torch.long, device=device), torch.zeros(0, dtype=dtype, device=device))

    @property
    def threshold(self) -> float:
        """Score that a new unit must reach: minus infinity until ``k`` units are known."""
        if len(self.scores) < self.k:
            return float("-inf")
        return float(self.scores.min()) if self.k else float("inf")

    def merged(self, scores: Tensor, indices: Tensor) -> Best:
        """Take in one block: its scores and the indices of its units.

        Raises:
            ConfigError: not one index per score.
            StateError: a score that is NaN.
        """
        check_request(scores, 0)
        if indices.shape != scores.shape:
            raise ConfigError(f"{len(indices)} indices for {len(scores)} scores; pass one index per score")
        # most of a block falls at the first test once k units are known
        likely = torch.nonzero(scores >= self.threshold).flatten()
        if not len(likely) or not self.k:
            return self
        together = torch.cat((self.indices, indices[likely]))
        values = torch.cat((self.scores, scores[likely].to(self.scores.dtype)))
        order = torch.argsort(together)
        together, values = together[order], values[order]
        chosen = top_k(values, min(self.k, len(values)))
        return Best(self.k, together[chosen], values[chosen])
