"""First-order change of the loss when a weight is set to zero."""

from __future__ import annotations

from torch import Tensor

from realloc.scores.score import Score
from realloc.scores.seen import Seen


def _measure(seen: Seen) -> Tensor:
    return seen.total((seen.need("values") * seen.need("gradient")).abs())


taylor = Score("taylor", frozenset({"values", "gradient"}), _measure)
"""Sum of ``|w g|`` over the unit's elements: the loss that its removal would move, to first order.

Reference: Molchanov et al. (1906.10771, eq. 8), who square ``w g``; the order of single weights is the same. Where we
differ: a block adds absolute values, so that elements of opposite sign do not hide each other. A keep score: it is
zero for every unit not held.
"""
