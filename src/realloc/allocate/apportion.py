"""Share an integer among sites, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from realloc.errors import ConfigError


def apportion(weights: Sequence[float], total: int, least: Sequence[int], most: Sequence[int]) -> tuple[int, ...]:
    """Share ``total`` in proportion to ``weights``, within bounds.

    Solves ``sum_i clamp(t * w_i, least_i, most_i) = total`` for ``t`` in exact rationals, so what a full site cannot
    take is shared again among the others in proportion; then rounds by largest remainder, ties to the lower index.
    When every site with weight is full, sites of weight zero share the rest evenly.

    Args:
        weights: finite, not negative; only their ratios matter.
        total: integer to share.
        least: fewest per site.
        most: greatest number per site.

    Returns:
        Integers that sum to ``total``, each within its bounds.

    Raises:
        ConfigError: bounds that cannot hold the total, or a weight that is negative, NaN or infinite.

    >>> apportion([3, 2, 1], 10, [0, 0, 0], [4, 9, 9])
    (4, 4, 2)
    """
    if not len(weights) == len(least) == len(most):
        raise ConfigError(f"apportion got {len(weights)} weights, {len(least)} least, {len(most)} most; pass one each")
    for index, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weight {index} is {weight}; pass a finite weight that is not negative")
    for index, (low, high) in enumerate(zip(least, most, strict=True)):
        if low > high:
            raise ConfigError(f"site {index} has least={low} above most={high}; lower least or raise most")
    if not sum(least) <= total <= sum(most):
        raise ConfigError(f"total={total} does not fit the bounds; pass {sum(least)} to {sum(most)}")
    whole = tuple(w for w in weights if isinstance(w, int))
    fits = all(low <= w <= high for w, low, high in zip(weights, least, most, strict=True))
    if fits and len(whole) == len(weights) and sum(whole) == total:
        return whole  # t = 1 solves it: by far the most frequent case
    shares = _shares([Fraction(w) for w in weights], total, least, most)
    result = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (result[i] - shares[i], i))
    for index in by_remainder[: total - sum(result)]:
        result[index] += 1
    return tuple(result)


def _shares(weights: list[Fraction], total: int, least: Sequence[int], most: Sequence[int]) -> list[Fraction]:
    weighted = [i for i, w in enumerate(weights) if w > 0]
    idle = sum(least[i] for i, w in enumerate(weights) if w == 0)
    full = sum(most[i] for i in weighted)
    if total - idle >= full:
        shares = [Fraction(most[i]) for i in range(len(weights))]
        rest = [i for i, w in enumerate(weights) if w == 0]
        scale = _scale([Fraction(1)] * len(rest), total - full, [least[i] for i in rest], [most[i] for i in rest])
        for i in rest:
            shares[i] = min(max(scale, Fraction(least[i])), Fraction(most[i]))
        return shares
    scale = _scale(
        [weights[i] for i in weighted], total - idle, [least[i] for i in weighted], [most[i] for i in weighted]
    )
    return [min(max(scale * w, Fraction(least[i])), Fraction(most[i])) for i, w in enumerate(weights)]


def _scale(weights: list[Fraction], total: int, least: Sequence[int], most: Sequence[int]) -> Fraction:
    """Find ``t`` with ``sum_i clamp(t * w_i, least_i, most_i) = total``, all weights above zero."""
    fixed, slope = Fraction(sum(least)), Fraction(0)
    bends = [(low / w, low, w) for w, low in zip(weights, least, strict=True)]
    bends += [(high / w, -high, -w) for w, high in zip(weights, most, strict=True)]
    at = Fraction(0)
    for at, bound, weight in sorted(bends, key=lambda bend: bend[0]):
        if fixed + slope * at >= total:
            break
        # a site leaves its least and grows with t, or stops at its most
        fixed, slope = fixed - bound, slope + weight
    return (total - fixed) / slope if slope > 0 else at
