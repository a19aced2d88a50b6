"""Wants by what a group's units are worth: a group whose units matter gets more of them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from realloc.scores.neurons import Neurons, WidthWant


def _measure(group: Neurons, kept: Tensor, count: int, generator: Generator) -> Tensor:
    total, width = float(kept.sum()), kept.numel()
    return total / torch.arange(width + 1, width + count + 1, dtype=torch.float64).clamp(min=1)


neuron_mean = WidthWant("mean worth", frozenset(), _measure)
"""``S / (w + j)`` for the j-th new unit of a group whose w units are worth S in sum.

If S stays as it is while units share it, that is the worth of each of w + j units: what the next is expected to be
worth. It is the reasoning of MorphNet (1711.06798): a layer that keeps many units under pressure is widened.
"""
