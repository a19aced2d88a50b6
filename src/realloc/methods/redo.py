"""ReDo: dormant units start anew where they are."""

from __future__ import annotations

from realloc.errors import ConfigError
from realloc.methods.width_method import WidthMethod
from realloc.scores.neuron_activity import neuron_activity
from realloc.scores.neuron_random import want_neuron_random


def redo(threshold: float = 0.1, *, mature: int = 0) -> WidthMethod:
    """Units whose mean absolute output is at most ``threshold`` of their layer's mean start anew. No width changes.

    Args:
        threshold: of a layer's mean output, 0 or more; the paper uses 0.1 and 0.025.
        mature: steps that a unit holds its place before it may go.

    Raises:
        ConfigError: a threshold below 0.

    Reference: ReDo, Sokar et al., 2302.12902, algorithm 1: incoming weights as a layer starts, outgoing zero. Where we
    differ: a recycled unit's second moments start at the median of its layer. The reference zeroes both moments and
    keeps the step count, so Adam's first update of such a unit is 3.2 times its rate. And what it gave on average goes
    into the biases behind, so that the function stays.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not threshold >= 0:
        raise ConfigError(
            f"threshold is {threshold!r}; it is a multiple of a layer's mean output, 0 or more, such as 0.1"
        )
    return WidthMethod(
        "redo", "2302.12902", keep=neuron_activity, want=want_neuron_random, within=True, threshold=float(threshold),
        mature=mature,
    )  # fmt: skip
