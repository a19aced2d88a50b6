"""Who gives way to whom: newcomers take what is free, then what those who hold it are worth less."""

from __future__ import annotations

import torch
from torch import Tensor


def exchange(worth: Tensor, holds: Tensor, free: int, margin: float) -> tuple[Tensor, Tensor]:
    """Choose who releases and who acquires, one unit each.

    The best that hold nothing take the free units, if they are worth anything. After these, the next best takes that
    of the worst who holds one, as long as it is worth more than ``1 + margin`` times as much: without a margin, noise
    would move units back and forth.

    Args:
        worth: float ``[n]``, finite.
        holds: bool ``[n]``.
        free: units that nobody holds, 0 or more.
        margin: 0 or more.

    Returns:
        Ascending positions of those that release and of those that acquire; ties go to the lower position.

    >>> exchange(torch.tensor([5.0, 1.0, 4.0, 1.05]), torch.tensor([False, True, False, False]), 1, 0.1)
    (tensor([1]), tensor([0, 2]))
    """
    holders, others = holds.nonzero().flatten(), (~holds & (worth > 0)).nonzero().flatten()
    best = others[worth[others].argsort(descending=True, stable=True)]
    worst = holders[worth[holders].argsort(stable=True)]
    filling, rest = best[:free], best[free:]
    count = min(len(rest), len(worst))
    swapped = int((worth[rest[:count]] > (1 + margin) * worth[worst[:count]]).sum())
    return worst[:swapped].sort().values, torch.cat([filling, rest[:swapped]]).sort().values
