"""How many visits each epoch gets of a budget of visits."""

from __future__ import annotations

import math

from realloc.errors import ConfigError


def visits_of(count: int, epochs: int, share: float, full: float, ranks: int = 1) -> tuple[int, ...]:
    """Visits by epoch: the last ``full`` of the epochs get every example, what is left is spread evenly before them.

    Each number is a multiple of the ranks; together they are at most ``share * count * epochs``, and less by fewer
    than ``ranks`` visits an epoch.

    Args:
        count: examples.
        epochs: of the run.
        share: of ``count * epochs`` that may be spent.
        full: share of the epochs, rounded down to whole ones, that see everything.
        ranks: that share each epoch.

    Raises:
        ConfigError: the budget does not pay for the full epochs, or for one visit a rank in each of the others; or
            there are fewer examples than ranks.

    >>> visits_of(10, 4, 0.55, 0.25)
    (4, 4, 4, 10)
    """
    budget, whole = int(share * count * epochs), count // ranks * ranks
    if not whole:
        raise ConfigError(f"{count} examples are fewer than the {ranks} ranks; give each rank one at least")
    last = math.floor(full * epochs) if share < 1 else epochs
    first, left = epochs - last, budget - last * whole
    if first and left < first * ranks:
        raise ConfigError(
            f"share {share:g} of {count:,} examples in {epochs} epochs is {budget:,} visits; {last} full epochs leave "
            f"{max(0, left):,} for the other {first}, which need {ranks} each: raise share or lower full"
        )
    even, more = divmod(left // ranks, first) if first else (0, 0)
    numbers = [min(whole, (even + (epoch < more)) * ranks) for epoch in range(first)]
    return (*numbers, *[whole] * last)
