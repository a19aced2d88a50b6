"""Continual backprop: a small share of mature units of low utility starts anew."""

from __future__ import annotations

from realloc.methods.width_method import WidthMethod, share_of
from realloc.schedule import constant
from realloc.scores.neuron_random import want_neuron_random
from realloc.scores.neuron_utility import neuron_utility


def continual_backprop(share: float = 0.01, *, mature: int = 100) -> WidthMethod:
    """At each move a share of every layer's mature units, those of lowest utility, starts anew.

    Args:
        share: of each layer's mature units at each move, in [0, 1): the paper's rate times the steps between two moves.
            Fractions add up over moves: a layer of 64 units recycles one in two of three moves at 0.01.
        mature: steps that a unit holds its place before it may go; the paper's threshold is 100.

    Raises:
        ConfigError: a share outside [0, 1).

    Reference: Dohare et al., 2306.13812 (Nature 632, 2024), Methods. Where we differ: the reference's compensation of a
    removed unit multiplies a mean output that was set to zero just before, so it does nothing; here it is made. Second
    moments start at the median of the layer, in place of a step count for each unit.
    """
    return WidthMethod(
        "continual_backprop", "2306.13812", keep=neuron_utility, want=want_neuron_random, within=True,
        drop=constant(share_of(share, "share")), mature=mature,
    )  # fmt: skip
