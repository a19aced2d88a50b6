"""Worth by size: the norm of what makes a unit times the norm of what reads it."""

from __future__ import annotations

from torch import Generator, Tensor

from realloc.scores.neurons import Neurons, WidthKeep, total


def _measure(group: Neurons, generator: Generator) -> Tensor:
    made, read = total(group.makers), total(group.readers)
    factors = [part for part in group.norms if part.name.endswith(".weight")]
    scale = total(factors) / len(factors) if factors else 1.0
    return (made * read * scale).sqrt()


neuron_magnitude = WidthKeep("size of in and out", frozenset(), _measure)
"""``|w_in| |w_out|``: unlike either alone, it stays as it is when a ReLU unit is scaled and its reader unscaled.

Over all that makes a unit and all that reads it. After a norm its factor says how large the output is, and multiplies;
of the several norms of a residual stream the root mean square of their factors does.
"""
