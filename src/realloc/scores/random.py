"""No opinion."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.scores.score import Score
from realloc.scores.seen import Seen


def _measure(seen: Seen) -> Tensor:
    drawn = torch.rand(len(seen), generator=seen.generator, dtype=torch.float64)
    return drawn.to(seen.places.device)


random = Score("random", frozenset(), _measure)
"""Uniform in [0, 1), drawn from the decision's own generator: the grow rule of SET (1707.04780) and the control.

The numbers are drawn on the CPU whatever the device, so that a run takes the same decisions everywhere.
"""
