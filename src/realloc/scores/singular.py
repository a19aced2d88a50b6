"""The singular values of what the ranks of a layer add up to."""

from __future__ import annotations

import torch
from torch import Tensor


def recompose(a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Write ``scale * B'A`` in singular directions, largest first.

    Args:
        a: ``[r, in]``.
        b: ``[r, out]``.
        scale: factor of the product.

    Returns:
        The singular values ``[r]`` of the scaled product in float64, and new A and B with the same product, whose rank
        k carries the k-th of them, shared evenly between the two.

    >>> values, a, b = recompose(torch.tensor([[0.0, 3.0]]), torch.tensor([[2.0, 0.0, 0.0]]), 0.5)
    >>> values.item(), bool(torch.allclose(0.5 * b.t() @ a, torch.tensor([[0.0, 3.0], [0.0, 0.0], [0.0, 0.0]])))
    (3.0, True)
    """
    basis_a, inner_a = torch.linalg.qr(a.double().t())
    basis_b, inner_b = torch.linalg.qr(b.double().t())
    left, values, right = torch.linalg.svd(inner_b @ inner_a.t(), full_matrices=False)
    spare = a.shape[0] - values.numel()  # ranks beyond the width of the layer carry nothing
    root = values.sqrt()
    new_a, new_b = (basis_a @ right.t() * root).t(), (basis_b @ left * root).t()
    if spare:
        new_a = torch.cat([new_a, new_a.new_zeros(spare, a.shape[1])])
        new_b = torch.cat([new_b, new_b.new_zeros(spare, b.shape[1])])
        values = torch.cat([values, values.new_zeros(spare)])
    return scale * values, new_a.to(a.dtype), new_b.to(b.dtype)


def jump(a: Tensor, b: Tensor, scale: float) -> float:
    """Frobenius norm of ``scale * B'A``: by how much a layer's weight changes when these ranks are cut.

    >>> jump(torch.tensor([[0.0, 3.0]]), torch.tensor([[2.0, 0.0, 0.0]]), 0.5)
    3.0
    """
    inner = (a.double() @ a.double().t()) * (b.double() @ b.double().t())
    return abs(scale) * float(inner.sum().clamp(min=0.0).sqrt())
