"""The best ``k``, exactly, with ties to the lower index."""

from __future__ import annotations

from torch import Generator, Tensor

from realloc.kernels.search import parted
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

    >>> import torch
    >>> top_k(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3).tolist()
    [0, 1, 3]
    """
    check_request(scores, k)
    return parted([(scores, k)])[0][0]
