"""How many visits each epoch gets of a budget of visits."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import final

from realloc.errors import ConfigError


def visits_in(count: int, epochs: int, share: float) -> int:
    """Visits that a share of all of them pays for. The share counts as it is written: 0.57 of 100 is 57.

    >>> visits_in(100, 1, 0.57), int(0.57 * 100)
    (57, 56)
    """
    return int(Fraction(repr(float(share))) * count * epochs)


def full_epochs(epochs: int, full: float) -> int:
    """Epochs that see everything: a share of them, rounded down, but one at least where any is asked for."""
    return max(visits_in(1, epochs, full), 1) if full and epochs > 1 else 0


def visits_of(count: int, epochs: int, share: float, full: float, ranks: int = 1) -> tuple[int, ...]:
    """Visits by epoch: the last ``full`` of the epochs get every example, what is left is spread evenly before them.

    Each number is a multiple of the ranks; together they are at most the budget, and less by fewer than ``ranks``
    visits an epoch.

    Args:
        count: examples.
        epochs: of the run.
        share: of ``count * epochs`` that may be spent.
        full: share of the epochs, rounded down to whole ones, but one at least, that see everything; 0: none.
        ranks: that share each epoch.

    Raises:
        ConfigError: the budget does not pay for the full epochs, or for one visit a rank in each of the others; or
            there are fewer examples than ranks.

    >>> visits_of(10, 4, 0.55, 0.25)
    (4, 4, 4, 10)
    """
    budget, whole = visits_in(count, epochs, share), count // ranks * ranks
    if not whole:
        raise ConfigError(f"{count} examples are fewer than the {ranks} ranks; give each rank one at least")
    last = full_epochs(epochs, full)
    first, left = epochs - last, budget - last * whole
    if first and left < first * ranks:
        raise ConfigError(
            f"share {share:g} of {count:,} examples in {epochs} epochs is {budget:,} visits; {last} full epochs leave "
            f"{max(0, left):,} for the other {first}, which need {ranks} each: raise share or lower full"
        )
    even, more = divmod(left // ranks, first) if first else (0, 0)
    numbers = [min(whole, (even + (epoch < more)) * ranks) for epoch in range(first)]
    return (*numbers, *[whole] * last)


@final
@dataclass(frozen=True)
class VisitPlan:
    """A budget of visits over a run, in integers: what each epoch draws, and what it trains."""

    count: int  # examples
    over: int  # candidates for each trained visit
    ranks: int
    budget: int
    per_epoch: tuple[int, ...]  # trained visits, on all ranks
    full_from: int  # the first of the epochs that visit every example with weight 1

    @property
    def whole(self) -> int:
        """Examples that ranks can share evenly."""
        return self.count // self.ranks * self.ranks

    @property
    def parked(self) -> int:
        """Visits that no epoch gets: what is left where ranks, or candidates, need equal numbers."""
        return self.budget - sum(self.per_epoch)

    @property
    def longest(self) -> int:
        """Candidates of the longest epoch."""
        return self.whole if self.over > 1 else max(self.per_epoch)

    def candidates(self, epoch: int) -> int:
        """Examples that an epoch draws, on all ranks."""
        return self.whole if self.over > 1 else self.per_epoch[epoch]

    def share(self, epoch: int) -> int:
        """The same, on one rank."""
        return self.candidates(epoch) // self.ranks

    def trained(self, places: int) -> int:
        """Visits on all ranks, once each rank has had so many candidates of an epoch."""
        return places // self.over * self.ranks

    def steps(self, batch_size: int) -> int:
        """Batches of the whole run on each rank, the last of an epoch smaller where it does not fit."""
        return sum(-(-self.share(epoch) // batch_size) for epoch in range(len(self.per_epoch)))


def plan_visits(count: int, epochs: int, share: float, full: float, over: int = 1, ranks: int = 1) -> VisitPlan:
    """The plan of a budget.

    Args:
        count: examples.
        epochs: of the run.
        share: of ``count * epochs`` that may be spent; with several candidates it is one in ``over``.
        full: share of the epochs that see everything.
        over: candidates for each trained visit.
        ranks: that share each epoch.

    Raises:
        ConfigError: as `visits_of`; or too few examples for one trained visit.
    """
    if over == 1:
        per_epoch = visits_of(count, epochs, share, full, ranks)
        budget = visits_in(count, epochs, share)
        return VisitPlan(count, 1, ranks, budget, per_epoch, epochs - full_epochs(epochs, full))
    even = count // ranks // over * ranks
    if not even:
        raise ConfigError(f"one in {over} of {count} examples on {ranks} ranks is none; lower over")
    return VisitPlan(count, over, ranks, count * epochs // over, (even,) * epochs, epochs)
