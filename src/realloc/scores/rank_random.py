"""Ranks at random: the control."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from realloc.scores.held_ranks import HeldRanks, RankKeep, RankWant, Wanted


def _keep(site: HeldRanks, generator: Generator) -> Tensor:
    return torch.rand(site.rank, generator=generator, dtype=torch.float64)


def _want(sites: Sequence[HeldRanks], generators: Sequence[Generator]) -> Wanted:
    drawn = [torch.rand(s.room, generator=g, dtype=torch.float64) for s, g in zip(sites, generators, strict=True)]
    return Wanted([numbers.sort(descending=True).values for numbers in drawn])


keep_random = RankKeep("random", _keep)
"""Every held rank gets a uniform random number."""

want_random = RankWant("random", _want)
"""Every free place gets a uniform random number, so a layer with more room gets more."""
