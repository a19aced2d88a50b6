"""The best ``k``, exactly, with ties to the lower index."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from realloc.select.selector import check_request


def top_k(scores: Tensor, k: int, generator: Generator | None = None) -> Tensor:
    """Select the ``k`` highest scores.

    ``torch.topk`` alone does not say which of equal scores it takes; here the lower index always wins, so every rank
    and every storage takes the same decision. Costs O(u). The generator is not used.

    Returns:
        int64[k], ascending.

    Raises:
        ConfigError: ``k`` outside 0 to ``u``.
        StateError: a score that is NaN.

    >>> top_k(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3).tolist()
    [0, 1, 3]
    """
    check_request(scores, k)
    if k == 0:
        return torch.zeros(0, dtype=torch.long, device=scores.device)
    if k == len(scores):
        return torch.arange(k, device=scores.device)
    threshold = torch.topk(scores, k, sorted=False).values.min()
    above = scores > threshold
    tied = torch.nonzero(scores == threshold).flatten()
    above[tied[: k - int(above.sum())]] = True
    return torch.nonzero(above).flatten()
