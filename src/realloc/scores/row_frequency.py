"""How often an id comes."""

from __future__ import annotations

from torch import Tensor

from realloc.scores.row_score import RowScore, RowStep


def _gain(step: RowStep) -> Tensor:
    return step.counts


row_frequency = RowScore("frequency", _gain, needs_sums=False)
"""Occurrences whose gradient came. What the libraries in use rank by, and what a score by gradient has to beat."""
