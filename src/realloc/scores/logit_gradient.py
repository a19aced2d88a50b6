"""A bound on the gradient of each example, from what a forward pass has made."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Norm of the gradient of each cross-entropy at the logits: a bound on the example's gradient, up to a constant.

    Source: Katharopoulos and Fleuret 2018 (1803.00942), equation 20.

    Args:
        logits: of shape (b, classes).
        labels: int64 of shape (b,).

    >>> logit_gradient(torch.zeros(1, 2), torch.tensor([0])).tolist()
    [0.7071067690849304]
    """
    with torch.no_grad():
        miss = logits.softmax(1)
        bound: Tensor = (miss - torch.nn.functional.one_hot(labels, logits.shape[1])).norm(dim=1)
    return bound
