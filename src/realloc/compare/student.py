"""Student's t: the interval of a mean of few numbers.

Chosen over the bootstrap because there are 3 to 10 seeds: a percentile bootstrap of so few values is too narrow (with
three, its 95 % interval can hold no more than the range of the data). Paired differences of accuracies over seeds are
close enough to normal for t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and its interval; the bounds are None for fewer than two values."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean with its two-sided t interval.

    >>> found = interval([1.0, 2.0, 3.0])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (2.0, -0.484, 4.484)
    """
    center, n = mean(values), len(values)
    if n < 2:
        return Interval(center, None, None)
    reach = quantile(0.5 + level / 2, n - 1) * stdev(values) / math.sqrt(n)
    return Interval(center, center - reach, center + reach)


def quantile(p: float, degrees: int) -> float:
    """The value below which a t variable falls with probability ``p`` in [0.5, 1), by bisection.

    >>> round(quantile(0.975, 4), 3)
    2.776
    """
    low, high = 0.0, 1.0
    while below(high, degrees) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle, degrees) < p else (low, middle)
    return (low + high) / 2


def below(t: float, degrees: int) -> float:
    """P(T <= t) for whole degrees of freedom: the closed form of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = cosine if degrees % 2 else 1.0
    for k in range(3 if degrees % 2 else 2, degrees, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if degrees == 1:
        central = 2 * angle / math.pi
    elif degrees % 2:
        central = 2 / math.pi * (angle + sine * total)
    else:
        central = sine * total
    return (1 + central) / 2
