"""Whose want is looked at: every place not held, or a random few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch
from torch import Generator, Tensor

from realloc.errors import ConfigError
from realloc.kernels.search import locate
from realloc.sites.places import among, merge


@final
@dataclass(frozen=True)
class Candidates:
    """A rule that names the places to measure, among those not held.

    ``factor`` is the number of candidates per held unit; None means every place that is not held.
    """

    factor: float | None = None

    def count(self, held: int, capacity: int, wanted: int = 0) -> int:
        """Say how many candidates a site gets.

        Args:
            held: units held.
            capacity: units of the full grid.
            wanted: units to be placed at least; so many candidates there are, if the site has the places.

        >>> sampled(0.5).count(held=100, capacity=1000), sampled(2).count(held=100, capacity=250)
        (50, 150)
        """
        free = capacity - held
        if self.factor is None:
            return free
        return min(free, max(math.floor(self.factor * held), wanted))

    def places(self, held: Tensor, capacity: int, generator: Generator, wanted: int = 0) -> Tensor:
        """Draw the candidates of one site.

        Uniform without replacement over the places not held, exactly ``count`` of them. Costs O(candidates + held) in
        time and memory, whatever the capacity; the numbers are drawn on the CPU.

        Args:
            held: int64[h], ascending.
            capacity: units of the full grid.
            generator: CPU generator of this decision and site.
            wanted: as in ``count``.

        Returns:
            int64, ascending.

        >>> everything().places(torch.tensor([1, 2]), 5, torch.Generator()).tolist()
        [0, 3, 4]
        """
        held = held.long()
        free = capacity - len(held)
        drawn = _distinct(free, self.count(len(held), capacity, wanted), generator).to(held.device)
        # rank r among the free places lies behind every held place with at most r free places before it
        free_before = held - torch.arange(len(held), device=held.device)
        return drawn + locate(free_before, drawn + 1)

    def __str__(self) -> str:
        return "everything" if self.factor is None else f"sampled({self.factor:g})"


def everything() -> Candidates:
    """Look at every place that is not held, as RigL and SNFS do."""
    return Candidates()


def sampled(factor: float = 1.0) -> Candidates:
    """Look at a uniformly random set of places, ``floor(factor * held)`` of them.

    The work then follows the units held, not the dense size of the layer.

    Args:
        factor: candidates per held unit, above 0.

    Raises:
        ConfigError: a factor that is not a finite number above 0.

    Reference: guided stochastic exploration, GSE (2401.06898), uniform distribution; the authors use 1.0. Where we
    differ: places already held and repeated draws never enter, so the size is exact; the authors drop them afterwards.
    """
    if not (isinstance(factor, Real) and not isinstance(factor, bool) and math.isfinite(factor) and factor > 0):
        raise ConfigError(f"sampled(factor={factor!r}): pass a finite number above 0, or use everything()")
    return Candidates(float(factor))


def _distinct(high: int, count: int, generator: Generator) -> Tensor:
    """Draw ``count`` distinct integers below ``high``, every set equally likely, ascending."""
    if count == high:
        return torch.arange(high)
    if 2 * count > high:
        return torch.randperm(high, generator=generator)[:count].sort().values
    drawn = torch.zeros(0, dtype=torch.long)
    while len(drawn) < count:
        # drawing only what is missing keeps every set of the final size equally likely
        more = torch.unique(torch.randint(high, (count - len(drawn),), generator=generator))
        drawn = merge(drawn, more[~among(more, drawn)])
    return drawn
