"""How heavy the tail of a weight matrix's spectrum is."""

from __future__ import annotations

import torch
from torch import Tensor


def power_law_exponent(weight: Tensor) -> float | None:
    """Hill's estimate of the exponent of the upper half of the eigenvalues of ``W^T W``.

    Source: Zhou et al. 2023, TempBalance (2312.00359), equation 2: ``1 + k / sum_i ln(lambda_i / lambda)`` over the k
    largest of n, lambda the next smaller one, with k = n / 2.

    Args:
        weight: of two or more dimensions; a convolution is flattened to ``[out, rest]``.

    Returns:
        None where there are fewer than two such eigenvalues above zero, or all are equal.

    >>> power_law_exponent(torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))) is None
    False
    """
    values = torch.linalg.svdvals(weight.detach().double().flatten(1)).square().sort().values
    half = values.numel() // 2
    floor = values[values.numel() - half - 1] if half and values.numel() > half else values.new_zeros(())
    upper = values[values.numel() - half :]
    if half < 1 or not float(floor) > 0:
        return None
    spread = float((upper / floor).log().sum())
    return 1 + half / spread if spread > 0 else None
