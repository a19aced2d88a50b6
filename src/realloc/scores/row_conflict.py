"""What an id gains by leaving a row that pulls elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.scores.row_gradient import loudness
from realloc.scores.row_score import RowScore, RowsKnown


def split_gain(known: RowsKnown) -> Tensor:
    """``|G_i| + |G_R - G_i| - |G_R|``, float64 ``[n]``: G_i an id's gradient, G_R that of all who share its row.

    To first order, and with steps of one length for each row, this is how much more the loss falls if the id has a row
    of its own: nothing where its mates are silent or agree, 2 |G_i| where they outweigh it in the opposite direction.
    An id that owns a row is judged by what would be lost if it came back.
    """
    mine, shared = known.sums.double(), known.mates.double()
    others = shared.where(known.owns.unsqueeze(1), shared - mine)
    alone, apart, together = (torch.linalg.vector_norm(one, dim=1) for one in (mine, others, others + mine))
    gain: Tensor = alone + apart - together
    return gain.clamp(min=0)


row_conflict = RowScore("conflict", loudness, split_gain, needs_directions=True)
"""Ours. A loud id whose mates are silent or agree gains nothing from a row of its own, and its norm does not say so.
Gradients are compared along a few random directions; ids stay in the sketch by loudness.
"""
