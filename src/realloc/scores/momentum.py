"""Size of the running mean of the gradient."""

from __future__ import annotations

from torch import Tensor

from realloc.scores.score import Score
from realloc.scores.seen import Seen


def _measure(seen: Seen) -> Tensor:
    return seen.total(seen.need("average").abs())


momentum = Score("momentum", frozenset({"average"}), _measure)
"""Sum of ``|m|`` over the unit's elements, with ``m`` the exponential mean of the gradient.

Reference: the grow rule of sparse momentum, SNFS (1907.04840, section 3). Where we differ: the mean is kept beside the
optimizer, so that the rule is the same under SGD and Adam; the authors divide by ``sqrt(v)`` under Adam.
"""
