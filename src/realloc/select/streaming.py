"""Top-k of scores that never exist all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
        if bool((together.diff() < 0).any()):  # blocks mostly come in order
            order = torch.argsort(together)
            together, values = together[order], values[order]
        chosen = top_k(values, min(self.k, len(values)))
        return Best(self.k, together[chosen], values[chosen])


def best_of(blocks: Iterable[tuple[Tensor, Tensor]], k: int) -> Best:
    """The best ``k`` units of many blocks of ``(scores, indices)``, in any order.

    A merge costs O(k), so blocks wait until there is as much of them: memory stays O(k + block), time O(units) and a
    merge for each time that k units beat the threshold.

    >>> best_of([(torch.tensor([5.0, 1.0]), torch.tensor([0, 1])), (torch.tensor([7.0]), torch.tensor([2]))], 2).indices
    tensor([0, 2])
    """
    best, waiting, size = Best.none(k, torch.float64), list[tuple[Tensor, Tensor]](), 0
    threshold = best.threshold
    for scores, indices in blocks:
        check_request(scores, 0)
        likely = torch.nonzero(scores >= threshold).flatten()
        if len(likely):
            waiting.append((scores[likely].double(), indices[likely]))
            size += len(likely)
        if size > 2 * k:
            best, waiting, size = _merged(best, waiting), [], 0
            threshold = best.threshold
    return _merged(best, waiting)


def best_across(units: Sequence[int], offers: Iterable[tuple[int, Tensor, Tensor]], k: int) -> list[Best]:
    """The best ``k`` units of several sites together, by site.

    Args:
        units: of each site.
        offers: blocks of ``(site, scores, indices within it)``; ties go to the earlier site.
        k: how many in all.

    >>> found = best_across([3, 2], [(0, torch.tensor([1.0, 5.0]), torch.tensor([0, 2])),
    ...                              (1, torch.tensor([3.0]), torch.tensor([1]))], 2)
    >>> [best.indices.tolist() for best in found]
    [[2], [1]]
    """
    firsts = [0, *accumulate(units)]
    best = best_of(((scores, places + firsts[site]) for site, scores, places in offers), k)
    cuts = torch.searchsorted(best.indices, torch.tensor(firsts[1:-1], dtype=torch.int64)).tolist()
    parts = zip(best.indices.tensor_split(cuts), best.scores.tensor_split(cuts), firsts[:-1], strict=True)
    return [Best(k, places - first, scores) for places, scores, first in parts]


def _merged(best: Best, waiting: list[tuple[Tensor, Tensor]]) -> Best:
    if not waiting:
        return best
    return best.merged(torch.cat([scores for scores, _ in waiting]), torch.cat([indices for _, indices in waiting]))
