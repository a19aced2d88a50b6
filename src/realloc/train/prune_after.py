"""Prune after training: train dense for half the run, cut once by global magnitude, train what is left for the rest.

Source: Han et al. 1506.02626 (train, prune, retrain), the cut by one global ranking as in Zhu and Gupta 1710.01878.
Where we differ: one cut instead of several; each half decays its learning rate to zero.
"""

from __future__ import annotations

from torch import nn

from realloc.allocate.globally import globally
from realloc.methods.method import Method
from realloc.prepare import plan_start
from realloc.scores.magnitude import magnitude


def cut(model: nn.Module, density: float) -> Method:
    """Make the method that keeps the largest weights of ``model`` as it is now, over all layers, and never moves."""
    chosen = plan_start(model, Method("prune_after", density), 0).chosen
    ranking = globally([c.parameter.detach().abs().flatten() for c in chosen])
    return Method("prune_after", density, reference="1506.02626", start=ranking, place=magnitude)


def turn(total: int) -> int:
    """The step after which the cut is made; 0 where the run is too short for two halves."""
    return total // 2
