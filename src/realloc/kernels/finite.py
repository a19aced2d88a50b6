"""Whether all numbers are usable: by their sum, quicker than a look at each; by a look only where that is not."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def all_finite(numbers: Tensor) -> bool:
    """Whether none is NaN or infinite.

    >>> all_finite(torch.tensor([1e38, 3e38])), all_finite(torch.tensor([1.0, float("inf")]))
    (True, False)
    """
    return math.isfinite(float(numbers.sum())) or bool(torch.isfinite(numbers).all())


def any_nan(numbers: Tensor) -> bool:
    """Whether one is NaN.

    >>> any_nan(torch.tensor([float("inf"), -float("inf")])), any_nan(torch.tensor([1.0, float("nan")]))
    (False, True)
    """
    return math.isnan(float(numbers.sum())) and bool(torch.isnan(numbers).any())
