"""The control: width moves at random."""

from __future__ import annotations

from realloc.allocate.width_costs import Currency
from realloc.methods.width_method import WidthMethod, share_of
from realloc.schedule import cosine
from realloc.scores.neuron_random import neuron_random, want_neuron_random


def random_widths(*, drop: float = 0.1, mature: int = 100, currency: Currency = "parameters") -> WidthMethod:
    """Release units and widen layers by chance, as much and as often as `width` does.

    Args:
        drop: share of the budget released at the first move, in [0, 1); falls to 0.
        mature: steps that a unit holds its place before it may go.
        currency: "parameters", or "FLOPs" of one example's forward: the moving layers, not attention's own products.

    Raises:
        ConfigError: a drop outside [0, 1), or numbers that make no sense.
    """
    return WidthMethod(
        "random_widths",
        keep=neuron_random,
        want=want_neuron_random,
        drop=cosine(share_of(drop)),
        mature=mature,
        currency=currency,
    )
