"""Net2Net: a new unit is a copy of one held, and the two share its outgoing weights."""

from __future__ import annotations

from typing import Final

import torch
from torch import Generator, Tensor

from realloc.grow.grown import Grown, Growth, like
from realloc.scores.neurons import Neurons

APART: Final = 0.1  # of an outgoing weight's size: by how much the halves differ


def _draw(group: Neurons, kept: Tensor, count: int, generator: Generator) -> Grown:
    count_from = min(count, group.width)
    best = kept.argsort(descending=True, stable=True)[:count_from]
    copied = best.repeat(-(-count // max(1, count_from)))[:count]
    if count > count_from:  # more than doubled: further copies read zero
        copied = torch.cat([best, best.new_zeros(count - count_from)])
    values, rewritten = {}, {}
    for part in (*group.makers, *group.norms):
        values[part.name] = part.values[copied].reshape(count, -1)
    for part in group.readers:
        whole = part.values[best].reshape(count_from, -1)
        size = whole.double().square().mean(1, keepdim=True).sqrt()
        noise = like(whole, torch.randn(whole.shape, generator=generator, dtype=torch.float64)) * (APART * size).to(
            whole
        )
        values[part.name] = torch.cat([whole / 2 - noise, whole.new_zeros(count - count_from, whole.shape[1])])
        rewritten[part.name] = (best, whole / 2 + noise)
    return Grown(values, rewritten=rewritten, copied=copied)


split = Growth("copy of the best", _draw)
"""The units of highest worth are copied with their norms and running statistics, each at most once; original and copy
get half of the outgoing weights (Chen et al., 1511.05641, section 2.3). Where we differ: the halves are ``w/2 + n`` and
``w/2 - n`` with small random n, so that the function stays to rounding and the two part without dropout or noise on
the function; and the best are copied, not random ones.
"""
