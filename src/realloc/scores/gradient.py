"""Size of the gradient."""

from __future__ import annotations

from torch import Tensor

from realloc.scores.score import Score
from realloc.scores.seen import Seen


def _measure(seen: Seen) -> Tensor:
    return seen.total(seen.need("gradient").abs())


gradient = Score("gradient", frozenset({"gradient"}), _measure)
"""Sum of ``|dL/dw|`` over the unit's elements, at the weights as they are (zero where not held).

Reference: the grow rule of RigL (1911.11134, eq. 3) and GraNet. The order within a site does not depend on the scale
of the loss or on the number of micro-batches summed.
"""
