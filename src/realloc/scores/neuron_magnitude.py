"""Worth by size: the norm of what makes a unit times the norm of what reads it."""

from __future__ import annotations

from torch import Generator, Tensor

from realloc.scores.neurons import Neurons, WidthKeep, total


def _measure(group: Neurons, generator: Generator) -> Tensor:
    made, read = total(group.makers), total(group.readers)
    scale = total(group.norms[:1]) if group.norms else 1.0  # after a norm its factor says how large the output is
    return (made * read * scale).sqrt()


neuron_magnitude = WidthKeep("size of in and out", frozenset(), _measure)
"""``|w_in| |w_out|``: unlike either alone, it stays as it is when a ReLU unit is scaled and its reader unscaled."""
