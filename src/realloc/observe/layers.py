"""What the gradients of whole layers say: their squared norms, and how their sums change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final, final

import torch
from torch import Tensor, nn

EVERY: Final = 16  # of the weights, one in so many is summed
SUMS: Final = "realloc_layer_sums"
NORMS: Final = "realloc_layer_norms"

Layers = Sequence[Sequence[nn.Parameter]]


def squared_norms(layers: Layers) -> tuple[float, ...]:
    """``|g|^2`` of each layer, in float64; 0 where it has no gradient.

    >>> weight = nn.Parameter(torch.zeros(2)); weight.grad = torch.tensor([3.0, 4.0])
    >>> squared_norms([[weight], []])
    (25.0, 0.0)
    """
    return tuple(
        float(sum(torch.linalg.vector_norm(p.grad.double()) ** 2 for p in layer if p.grad is not None))
        for layer in layers
    )


@final
class GradientSums:
    """Sums of gradients over an interval, layer by layer, in buffers that travel with the model.

    Between two intervals the L1 norm of each sum is kept; their relative change is AutoFreeze's eta.
    """

    def __init__(self, owner: nn.Module, layers: Layers) -> None:
        self.owner = owner
        self._layers = layers
        sizes = [sum(_sample(p).numel() for p in layer) for layer in layers]
        self._bounds = [*accumulate(sizes, initial=0)]
        if SUMS in owner._buffers:
            return
        owner.register_buffer(SUMS, torch.zeros(self._bounds[-1]))
        owner.register_buffer(NORMS, torch.full((len(layers),), float("nan"), dtype=torch.float64))

    def _buffer(self, name: str) -> Tensor:
        found = self.owner._buffers[name]
        assert found is not None
        return found

    def add(self) -> None:
        """Add this step's gradients."""
        sums = self._buffer(SUMS)
        for layer, first in zip(self._layers, self._bounds, strict=False):
            for parameter in layer:
                if parameter.grad is not None:
                    part = _sample(parameter.grad)
                    sums[first : first + part.numel()].add_(part)
                first += _sample(parameter).numel()

    def change(self) -> tuple[float | None, ...]:
        """Eta of each layer: ``|n - n_before| / n_before``, None without an earlier interval. Starts a new one."""
        sums, norms = self._buffer(SUMS), self._buffer(NORMS)
        now = torch.stack([sums[a:b].double().abs().sum() for a, b in pairwise(self._bounds)])
        eta = (now - norms).abs() / norms
        norms.copy_(now)
        sums.zero_()
        return tuple(float(x) if bool(torch.isfinite(x)) else None for x in eta)


def _sample(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)[::EVERY].float()
