"""Size of the weights."""

from __future__ import annotations

from torch import Tensor

from realloc.scores.score import Score
from realloc.scores.seen import Seen


def _measure(seen: Seen) -> Tensor:
    return seen.total(seen.need("values").abs())


magnitude = Score("magnitude", frozenset({"values"}), _measure)
"""Sum of ``|w|`` over the unit's elements; for a single weight ``|w|``.

Reference: the drop rule of RigL (1911.11134, eq. 3) and of most of the field. A freshly grown weight that is still
exactly zero has score 0, and is told apart from a place not held because only held places are scored.
"""
