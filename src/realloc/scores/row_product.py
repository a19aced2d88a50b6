"""How often an id comes, times how far the step's gradient pulls it."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.scores.row_score import RowScore, RowStep


def _gain(step: RowStep) -> Tensor:
    pulls: Tensor = torch.linalg.vector_norm(step.sums, dim=1)
    return step.counts * pulls * step.scale


row_product = RowScore("product", _gain)
"""Frequency times gradient norm in each step, after AdaEmbed (Lai et al., OSDI 2023). Where we differ: gradients are
normalised over a step, the paper divides by the 95th percentile of each feature at a rebuild.
"""
