"""Linear layers whose weight is stored the other way round, ``[in, out]``: `Conv1D` of transformers, as in GPT-2.

Everything that reads a weight here reads it ``[out, in]``; a turned one is a view of what is stored, never a copy.
"""

from __future__ import annotations

from torch import Tensor, nn


def turned(module: nn.Module) -> bool:
    """Whether a layer is such a one. transformers need not be there.

    >>> turned(nn.Linear(2, 3))
    False
    """
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    """Whether a layer computes ``x W' + b``, whichever way W is stored."""
    return isinstance(module, nn.Linear) or turned(module)


def upright(module: nn.Module, stored: Tensor) -> Tensor:
    """A tensor in the layout of the layer's weight (the weight itself, its gradient) as ``[out, in]``: a view."""
    return stored.t() if turned(module) else stored
