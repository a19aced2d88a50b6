"""How loud an id is."""

from __future__ import annotations

from torch import Tensor

from realloc.scores.row_score import RowScore, RowStep


def loudness(step: RowStep) -> Tensor:
    """The norms of an id's gradients, added over its occurrences, as a part of the step's: float64 ``[n]``."""
    return step.norms * step.scale


row_gradient = RowScore("gradient", loudness, needs_sums=False, reference="2312.03256")
"""The gradient norm of CAFE (2312.03256): a row for the ids that pull most. Ours is normalised over all tables of a
step, so that a table with larger gradients gets more rows; the published code normalises each field by itself.
"""
