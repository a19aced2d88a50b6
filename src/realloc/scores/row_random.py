"""No opinion on which id owns a row."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.scores.row_frequency import row_frequency
from realloc.scores.row_score import RowScore, RowsKnown


def _worth(known: RowsKnown) -> Tensor:
    drawn = torch.rand(len(known), generator=known.generator, dtype=torch.float64)
    return drawn.to(known.scores.device)


row_random = RowScore("random", row_frequency.gain, _worth, needs_sums=False)
"""Uniform numbers at each decision, for the ids that the sketch knows: the control."""
