"""GradMax: new neurons where their first gradient is largest."""

from __future__ import annotations

from realloc.allocate.width_costs import Currency
from realloc.grow.gradmax import gradmax as largest
from realloc.methods.width_method import WidthMethod, share_of
from realloc.schedule import cosine
from realloc.scores.neuron_effect import neuron_effect
from realloc.scores.neuron_gain import neuron_gain


def gradmax(
    *, drop: float = 0.1, window: int = 10, mature: int = 100, currency: Currency = "parameters"
) -> WidthMethod:
    """Release the units of least effect per cost; new ones come where they get the largest gradient, pointing there.

    For hidden layers between two plain linear layers with biases.

    Args:
        drop: share of the budget released at the first move, in [0, 1); falls to 0.
        window: steps before a move whose effects are summed.
        mature: steps that a unit holds its place before it may go.
        currency: "parameters", or "FLOPs" of one example's forward: the moving layers, not attention's own products.

    Raises:
        ConfigError: a drop outside [0, 1), or numbers that make no sense.

    Reference: Evci et al., 2201.05125. Where we differ: the paper only grows, layer by layer in turn; here units of
    least effect pay for the new ones, and layers compete by ``sigma^2`` per cost.
    """
    return WidthMethod(
        "gradmax", "2201.05125", keep=neuron_effect, want=neuron_gain, grow=largest, drop=cosine(share_of(drop)),
        mature=mature, window=window, currency=currency,
    )  # fmt: skip
