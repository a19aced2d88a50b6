"""AdaLoRA's importance of a rank: smoothed sensitivity times its spread."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from realloc.errors import StateError
from realloc.scores.held_ranks import HeldRanks, RankKeep


def _measure(site: HeldRanks, generator: Generator) -> Tensor:
    if site.means is None:
        raise StateError(f"{site.name}: no sensitivity was measured; give the method its betas")
    mean_a, mean_b, spread_a, spread_b = (m.double() for m in site.means)
    if not site.rank:
        return torch.zeros(0, dtype=torch.float64)
    return (mean_a * spread_a).mean(1) + (mean_b * spread_b).mean(1)


sensitivity = RankKeep("sensitivity", _measure)
"""``mean_j s(A_kj) + mean_j s(B_kj)`` of rank k, with ``s = I U``: running means of ``|w g|`` and of its spread.

Reference: AdaLoRA (2303.10512, equations 8 to 12). Where we differ: no score of a singular value is added.
A mean over the row is a score per parameter already, so layers of different width compare.
"""
