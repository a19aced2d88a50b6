"""GradMax's gain: the largest gradient that a new unit's incoming weights could get."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from realloc.errors import StateError
from realloc.scores.neurons import Neurons, WidthWant


def _measure(group: Neurons, kept: Tensor, count: int, generator: Generator) -> Tensor:
    if group.products is None:
        raise StateError(f"{group.name}: products of input and output gradient were not seen")
    values = torch.linalg.svdvals(group.products.double()).square()[:count]
    return torch.cat([values, values.new_zeros(count - values.numel())]).cpu()


neuron_gain = WidthWant("gradient of a new unit", frozenset({"products"}), _measure)
"""``sigma_j^2`` of ``E[d_out x_in^T]`` over the batch (Evci et al., 2201.05125, equation 11).

With outgoing weights of norm c it is the squared gradient norm of the incoming weights over ``c^2``: to first order the
decrease of the loss per unit of rate.
"""
