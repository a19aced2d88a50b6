"""ReDo's dormancy: mean absolute output beside the mean of its layer."""

from __future__ import annotations

from torch import Generator, Tensor

from realloc.errors import StateError
from realloc.scores.neurons import Neurons, WidthKeep


def _measure(group: Neurons, generator: Generator) -> Tensor:
    if group.outputs is None:
        raise StateError(f"{group.name}: its outputs were not seen")
    outputs = group.outputs.double()
    return outputs / outputs.mean().clamp(min=1e-300)


neuron_activity = WidthKeep("activity", frozenset({"outputs"}), _measure)
"""``mean|h_u| / mean_u mean|h_u|`` (Sokar et al., 2302.12902, equation 1): 1 is the average unit of its layer."""
