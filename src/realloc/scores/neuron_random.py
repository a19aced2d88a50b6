"""Worth by chance, and wants by chance: the control."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from realloc.scores.neurons import Neurons, WidthKeep, WidthWant


def _keep(group: Neurons, generator: Generator) -> Tensor:
    return torch.rand(group.width, generator=generator, dtype=torch.float64) * group.price


def _want(group: Neurons, kept: Tensor, count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64).sort(descending=True).values * group.price


neuron_random = WidthKeep("chance", frozenset(), _keep)
"""Every slot, not every unit, is as likely to go: units of a dear group would otherwise go too rarely per cost."""

want_neuron_random = WidthWant("chance", frozenset(), _want)
"""The groups' new units in random order per cost."""
