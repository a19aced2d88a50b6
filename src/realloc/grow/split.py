"""Net2Net: a new unit is a copy of one held, and the two share its outgoing weights."""

from __future__ import annotations

from typing import Final

import torch
from torch import Generator, Tensor

from realloc.grow.grown import Grown, Growth, like
from realloc.scores.neurons import Neurons

APART: Final = 0.1  # of an outgoing weight's size: by how much the halves differ


def _draw(group: Neurons, kept: Tensor, count: int, generator: Generator) -> Grown:
    staying = int(torch.isfinite(kept).sum())
    best = kept.argsort(descending=True, stable=True)[: min(count, staying)]
    which = torch.arange(count) % len(best)  # each once, then each once more
    copied, sharing = best[which], torch.bincount(which) + 1
    incoming = {part.name: part.values[copied].reshape(count, -1) for part in (*group.makers, *group.norms)}
    outgoing, rewritten = {}, {}
    for part in group.readers:
        whole = part.values[best].reshape(len(best), -1)
        size = (APART * whole.double().square().mean(1, keepdim=True).sqrt()).to(whole)
        drawn = torch.randn(count, whole.shape[1], generator=generator, dtype=torch.float64)
        noise = like(whole, drawn) * size[which]
        portion = whole / sharing[:, None].to(whole)
        outgoing[part.name] = portion[which] - noise
        rewritten[part.name] = best, portion.index_add(0, which.to(whole.device), noise)
    return Grown(incoming, outgoing, rewritten=rewritten, copied=copied)


split = Growth("copy of the best", _draw)
"""The units of highest worth are copied with their norms and running statistics; original and copies share its outgoing
weights (Chen et al., 1511.05641, section 2.3). Where we differ: the halves are ``w/2 + n`` and ``w/2 - n`` with small
random n, so that the function stays to rounding and the two part without dropout or noise on the function; and the best
are copied, each once before any is copied twice, not random ones.
"""
