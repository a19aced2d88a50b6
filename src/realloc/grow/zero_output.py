"""A new unit computes something at random, and nobody reads it yet."""

from __future__ import annotations

from torch import Generator, Tensor

from realloc.grow.grown import Grown, Growth, uniform
from realloc.scores.neurons import Neurons


def _draw(group: Neurons, kept: Tensor, count: int, generator: Generator) -> Grown:
    makers = [part for part in group.makers if not part.vector]  # biases start at zero
    return Grown({part.name: uniform(part, count, generator) for part in makers})


zero_output = Growth("random, output zero", _draw)
"""Incoming weights as torch starts a layer, outgoing weights zero: the function stays, bit for bit.

The outgoing weights have a gradient from the first step on, the incoming ones from the second.
"""
