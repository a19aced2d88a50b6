"""Size of the gradient when a unit was new."""

from __future__ import annotations

from torch import Tensor

from realloc.scores.score import Score
from realloc.scores.seen import Seen


def _measure(seen: Seen) -> Tensor:
    return seen.need("impression")


impression = Score("first impression", frozenset({"impression"}), _measure)
"""``|sum of the gradient over the unit's first interval|``, in standard deviations from the mean of its interval.

What a unit was worth when it had just entered, at weights that were still near zero: later its gradient is small
because it is trained, not because it is useless. A unit that enters again keeps the better of its impressions. Needs a
method with ``impressions=True``; what is collected, and when, is in `realloc.observe.impressions`.

Reference: EntryPrune (2410.02344).
"""
