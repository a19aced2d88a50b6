"""How much a frozen representation knows of the labels: leave-one-out ridge regression, example by example."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError

STRENGTHS: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, times the mean eigenvalue


def leave_one_out(features: Tensor, targets: Tensor) -> Tensor:
    """Squared error of each example when a linear model was fitted to all the others.

    The residual of example i without itself is r_i / (1 - h_i), with r its residual in the fit to all and h_i its
    leverage (Allen 1974, the PRESS statistic), so one eigendecomposition stands for n fits. The strength of the ridge
    is the one with the smallest mean error.

    Args:
        features: float ``[n, d]``; each column is standardised here, a constant one counts for nothing.
        targets: float ``[n, c]``: numbers, or classes as `one_hot` makes them.

    Returns:
        float64 ``[n]``.

    Raises:
        ConfigError: fewer than 3 examples, shapes that differ, or numbers that are not finite.

    >>> x = torch.arange(8.0)[:, None]
    >>> float(leave_one_out(x, 2 * x + 1).max()) < 1e-3
    True
    """
    n = len(features)
    if features.ndim != 2 or targets.ndim != 2 or len(targets) != n or n < 3:
        raise ConfigError(
            f"features are {tuple(features.shape)} and targets {tuple(targets.shape)}; a probe takes [n, d] and [n, c] "
            "with n of 3 or more"
        )
    if not bool(torch.isfinite(features).all()) or not bool(torch.isfinite(targets).all()):
        raise ConfigError("features or targets hold NaN or Inf; a probe cannot be fitted to them")
    x, y = features.double(), targets.double()
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-9) / max(1, x.shape[1]) ** 0.5
    y = y - y.mean(0)
    values, axes = torch.linalg.eigh(x.T @ x)
    turned = x @ axes
    slopes = turned.T @ y
    best: Tensor | None = None
    for strength in STRENGTHS:
        shrink = 1 / (values.clamp(min=0) + strength * n / x.shape[1])
        leverage = (turned.square() * shrink).sum(1) + 1 / n
        error = ((y - turned @ (shrink[:, None] * slopes)) / (1 - leverage)[:, None]).square().sum(1)
        if best is None or error.mean() < best.mean():
            best = error
    assert best is not None
    return best


def one_hot(labels: Tensor) -> Tensor:
    """Classes ``int [n]`` as targets ``[n, c]``.

    >>> one_hot(torch.tensor([0, 2])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    return nn.functional.one_hot(labels).float()
