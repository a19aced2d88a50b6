"""What a new rank would learn first: the gradient that the held ranks cannot follow, per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Generator, Tensor

from realloc.scores.held_ranks import HeldRanks, RankWant, Wanted

OVERSAMPLE: Final = 4
AGREE: Final = 0.7  # rank correlation of the sites between the halves of a batch
FLAT: Final = "uniform: the gradients of this batch do not tell the layers apart"


def rank_gain(margin: float) -> RankWant:
    """Build the want score ``scale^2 sigma_j^2 / (in + out)`` of the j-th new rank of a layer.

    sigma_j are the singular values of ``(I - P_B) G (I - P_A)``: the gradient G of the weight less what lies in the
    span of the held rows of A or of B, which the held ranks can follow by themselves. The square is the first-order
    decrease of the loss, by unit rate, of a rank that points along that direction (GoRA looks at the same G).

    Uniform wins where the evidence does not separate the layers. They count as separated when, on each half of the
    batch's rows by itself, the third quartile of the layers' first gains is more than ``margin`` times the first
    quartile, and the two halves put the layers into the same order (Spearman's correlation above 0.7). Otherwise the
    layer with the fewest ranks comes first.
    """

    def measure(sites: Sequence[HeldRanks], generators: Sequence[Generator]) -> Wanted:
        gains, halves = [], []
        for site, generator in zip(sites, generators, strict=True):
            parts = [_beyond(site, site.gradient(half)) for half in (0, 1)]
            found = _leading(parts[0] + parts[1], site.room, generator)
            gains.append(found.double().square() * (site.scale**2 / site.cost))
            halves.append([float(part.norm()) ** 2 / site.cost for part in parts])
        if separated(torch.tensor(halves, dtype=torch.float64), margin):
            return Wanted(gains)
        return Wanted([level_gains(site) for site in sites], FLAT)

    return RankWant("gradient beyond what is held", measure, looks=True)


def level_gains(site: HeldRanks) -> Tensor:
    """Gains that fill the layer with the fewest ranks first.

    They are no estimate: only their order counts.
    """
    return -(torch.arange(site.room, dtype=torch.float64) + site.rank)


def separated(halves: Tensor, margin: float) -> bool:
    """Whether gains ``[sites, 2]``, measured on two halves of a batch, tell the sites apart.

    >>> separated(torch.tensor([[1.0, 1.2], [5.0, 6.0], [30.0, 20.0]]), 2.0)
    True
    >>> separated(torch.tensor([[1.0, 30.0], [5.0, 6.0], [30.0, 1.0]]), 2.0)
    False
    """
    if len(halves) < 2 or not bool((halves > 0).any()):
        return False
    low, high = torch.quantile(halves.double(), torch.tensor([0.25, 0.75], dtype=torch.float64), 0)
    if not bool((high > margin * low).all()):
        return False
    order = halves.argsort(0).argsort(0).double()
    first, second = (order - order.mean(0)).t()
    return float(first @ second) > AGREE * float(first.norm() * second.norm())


def _beyond(site: HeldRanks, gradient: Tensor) -> Tensor:
    """The gradient ``[out, in]`` less its parts in the span of the held rows of A and of B."""
    if site.rank:
        rows, _ = torch.linalg.qr(site.a.to(gradient.dtype).t())
        gradient = gradient - gradient @ rows @ rows.t()
        # a new rank's B is zero, and spans nothing
        live = site.b[site.b.abs().amax(1) > 0].to(gradient.dtype)
        if len(live):
            columns, _ = torch.linalg.qr(live.t())
            gradient = gradient - columns @ (columns.t() @ gradient)
    return gradient


def _leading(matrix: Tensor, count: int, generator: Generator) -> Tensor:
    """The ``count`` leading singular values, zeros beyond the rank: randomized subspace iteration (0909.4061, 4.4)."""
    width = min(count + OVERSAMPLE, *matrix.shape)
    basis = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype).to(matrix.device)
    for _ in range(2):
        left, _ = torch.linalg.qr(matrix @ basis)
        basis, _ = torch.linalg.qr(matrix.t() @ left)
    values: Tensor = torch.linalg.svdvals(matrix @ basis)[:count]
    return torch.cat([values, values.new_zeros(count - values.numel())])
