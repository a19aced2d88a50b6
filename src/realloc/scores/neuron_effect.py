"""Worth by effect: the squared change of the loss, to first order, if a unit's output were zero."""

from __future__ import annotations

from torch import Generator, Tensor

from realloc.errors import StateError
from realloc.scores.neurons import Neurons, WidthKeep


def _measure(group: Neurons, generator: Generator) -> Tensor:
    if group.worth is None:
        raise StateError(f"{group.name}: its worth was not summed")
    return (group.worth / max(1.0, group.seen)).sqrt()


neuron_effect = WidthKeep("effect of removal", frozenset({"worth"}), _measure)
"""Root mean square over the window's steps of ``sum_j w_j g_j`` over the weights that read the unit.

That sum is the first-order change of the batch's loss as the unit's output goes to zero, with its sign, so that effects
which cancel do so within a step (Molchanov et al., 1906.10771, equation 8, with the gate's gradient as the sum over the
group). In units of loss; the weights are those after the step's update. Where we differ: the weights that read the
unit, not those that make it, since a bias or a norm in between would be left out there.
"""
