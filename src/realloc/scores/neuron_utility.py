"""Continual backprop's contribution utility."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from realloc.errors import StateError
from realloc.scores.neurons import Neurons, WidthKeep


def _measure(group: Neurons, generator: Generator) -> Tensor:
    if group.outputs is None:
        raise StateError(f"{group.name}: its outputs were not seen")
    read = sum(part.values.double().abs().flatten(1).sum(1) for part in group.readers)
    weights = [part.values.double().abs().flatten(1) for part in group.makers if not part.vector]
    return group.outputs.double() * read / (torch.cat(weights, 1).mean(1) + 1e-12)


neuron_utility = WidthKeep("utility", frozenset({"outputs"}), _measure)
"""``mean|h| sum|w_out| / mean|w_in|`` (Dohare et al., Nature 632, 2024, Methods, equation 3).

``mean|w_in|`` is over all weights that make a unit: of a head, its queries, keys and values.

Where we differ: the mean output of one step's batch in place of a decaying mean over single examples, and without the
subtraction of the mean output, which removal compensates here.
"""
