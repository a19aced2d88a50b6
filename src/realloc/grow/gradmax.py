"""GradMax: a new unit whose incoming weights get the largest gradient that is possible."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from realloc.errors import StateError
from realloc.grow.grown import Grown, Growth, like, uniform
from realloc.scores.neurons import OPEN, Neurons


def _draw(group: Neurons, kept: Tensor, count: int, generator: Generator) -> Grown:
    if group.products is None or group.level is None:
        raise StateError(f"{group.name}: products of input and output gradient were not seen")
    reader, weight, bias = group.readers[0], group.makers[0], group.makers[1]
    left, _, _ = torch.linalg.svd(group.products.double(), full_matrices=False)
    directions = left.t()[:count]
    scale = reader.values.double().norm(dim=1).mean()
    outgoing = like(reader.values, (directions * scale).cpu())
    rest = count - len(outgoing)  # beyond the rank there is no direction left: their outputs are zero
    incoming = torch.cat(
        [weight.values.new_zeros(len(outgoing), weight.values.shape[1]), uniform(weight, rest, generator)]
    )
    opened = bias.values.new_zeros(count, 1)
    opened[: len(outgoing)] = OPEN
    silent = outgoing.new_zeros(rest, outgoing.shape[1])
    return Grown(
        {weight.name: incoming, bias.name: opened},
        {reader.name: torch.cat([outgoing, silent])},
        shifts={reader.name: -group.level * outgoing.sum(0)},
    )


gradmax = Growth("largest gradient", _draw, products=True)
"""Incoming weights zero, outgoing weights the leading left singular vectors of ``E[d_out x_in^T]``, as long as the
mean of those held (Evci et al., 2201.05125, equations 10 and 11, section 3.1).

Where we differ: the paper lets an activation with f(0) = 0, f'(0) = 1; torch's ReLU has f'(0) = 0, and a unit that
starts with zero weights there stays dead. So its bias starts at 0.01, and the reader's bias takes back what the unit
gives out then, by the activation that the model has: the function stays, to rounding.
"""
