"""Whose want is looked at: every place not held, a random few, or those that looked best a few steps ago."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import final

from torch import Generator, Tensor

from realloc.errors import ConfigError
from realloc.kernels.search import Lot


@final
@dataclass(frozen=True)
class Candidates:
    """A rule that names the places to measure, among those not held.

    ``factor`` is the number of candidates per held unit; None means every place that is not held. Over how many
    ``steps`` before a move, that of the move among them, the gradient of candidates is collected; more than one: they
    are not drawn, see `strongest`.
    """

    factor: float | None = None
    steps: int = 1

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

    def lot(self, held: Tensor, capacity: int, generator: Generator, wanted: int = 0) -> Lot:
        """Say what is drawn for one site: uniform without replacement over the places not held, ``count`` of them.

        Costs O(candidates + held) in time and memory, whatever the capacity; the numbers are drawn on the CPU.

        Args:
            held: int64[h], ascending.
            capacity: units of the full grid.
            generator: CPU generator of this decision and site.
            wanted: as in ``count``.

        >>> import torch
        >>> from realloc.kernels.search import draw
        >>> draw([everything().lot(torch.tensor([1, 2]), 5, torch.Generator())])
        [tensor([0, 3, 4])]
        """
        held = held.long().cpu()
        return Lot(capacity, self.count(len(held), capacity, wanted), generator, held)

    def __str__(self) -> str:
        if self.steps > 1:
            return f"strongest({self.factor:g}, steps={self.steps})"
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
    return Candidates(_factor(factor, "sampled"))


def strongest(factor: float = 1.0, *, steps: int = 5) -> Candidates:
    """Look at the best places of the first of ``steps`` steps before a move; their gradients are summed over them all.

    ``floor(factor * held)`` places in all, over all sites together, by the method's want. What is kept meanwhile is one
    number a candidate and its place, never a dense gradient.

    Args:
        factor: candidates per held unit, above 0.
        steps: over which gradients are summed, 2 or more.

    Raises:
        ConfigError: a factor that is not a finite number above 0, or fewer steps.

    Reference: SpIEL-AG (2401.16405, section 3.2; the authors' code: 1.0 and 5 steps). Where we differ: candidates are
    places not held, where the authors' may be held already, and compete over all sites, not within each.

    >>> str(strongest())
    'strongest(1, steps=5)'
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ConfigError(f"strongest(steps={steps!r}): pass 2 or more steps, or use everything()")
    return Candidates(_factor(factor, "strongest"), steps)


def _factor(factor: float, name: str) -> float:
    if not (isinstance(factor, Real) and not isinstance(factor, bool) and math.isfinite(factor) and factor > 0):
        raise ConfigError(f"{name}(factor={factor!r}): pass a finite number above 0, or use everything()")
    return float(factor)
