"""MorphNet: shrink by worth, then widen all layers by one factor back to the budget."""

from __future__ import annotations

from realloc.allocate.room_of_widths import in_proportion
from realloc.allocate.width_costs import Currency
from realloc.methods.width_method import WidthMethod, share_of
from realloc.schedule import cosine
from realloc.scores.neuron_effect import neuron_effect
from realloc.scores.neuron_mean import neuron_mean


def morphnet(
    *, drop: float = 0.1, window: int = 10, mature: int = 100, currency: Currency = "parameters"
) -> WidthMethod:
    """Release the units of least effect per cost, then widen every layer by the one factor that the budget pays for.

    Measured (benchmarks/results/units.md): from a badly shaped MLP -0.20 ± 0.24 points beside widths that stay. In
    small moves the one factor gives back the proportions that were there.

    Args:
        drop: share of the budget released at the first move, in [0, 1); falls to 0.
        window: steps before a move whose effects are summed.
        mature: steps that a unit holds its place before it may go.
        currency: "parameters", or "FLOPs" of one example's forward: the moving layers, not attention's own products.

    Raises:
        ConfigError: a drop outside [0, 1), or numbers that make no sense.

    Reference: Gordon et al., 1711.06798, section 3. Where we differ: the paper shrinks by a penalty on batch norm
    factors over a whole training run, widens once and trains anew; here both happen at every move of one run, by the
    measured effect of removal, and new units keep the function.
    """
    return WidthMethod(
        "morphnet", "1711.06798", keep=neuron_effect, want=neuron_mean, share=in_proportion,
        drop=cosine(share_of(drop)), mature=mature, window=window, currency=currency,
    )  # fmt: skip
