"""Width: neurons, channels and heads move to the layers whose units matter."""

from __future__ import annotations

from typing import Final

from realloc.allocate.room_of_widths import by_gain
from realloc.allocate.width_costs import Currency
from realloc.grow.grown import Growth
from realloc.grow.zero_output import zero_output
from realloc.methods.named_score import named_score
from realloc.methods.width_method import WidthMethod, share_of
from realloc.schedule import cosine
from realloc.scores.neuron_activity import neuron_activity
from realloc.scores.neuron_effect import neuron_effect
from realloc.scores.neuron_magnitude import neuron_magnitude
from realloc.scores.neuron_mean import neuron_mean
from realloc.scores.neuron_random import neuron_random
from realloc.scores.neuron_utility import neuron_utility
from realloc.scores.neurons import WidthKeep, WidthWant

SCORES: Final = {
    "effect": neuron_effect, "magnitude": neuron_magnitude, "activity": neuron_activity, "utility": neuron_utility,
    "random": neuron_random,
}  # fmt: skip


def width(
    *,
    drop: float = 0.1,
    score: str | WidthKeep = "effect",
    want: WidthWant = neuron_mean,
    grow: Growth = zero_output,
    window: int = 10,
    mature: int = 100,
    currency: Currency = "parameters",
) -> WidthMethod:
    """Release the units of least effect per cost, over all layers, and widen the layers whose units are worth most.

    The model as it is given says what the budget is: what its moving widths cost. Time and memory of a step follow the
    widths, since every layer computes densely at its width of now.

    Measured (benchmarks/results/units.md, 5 paired seeds, equal budgets): from a badly shaped MLP +0.79 ± 0.64 points
    over the same widths held still and +0.59 ± 0.45 over random moves; from even widths -0.29 ± 0.47: nothing. So it
    mends a shape that is wrong; where widths were chosen with care, keep them: `uniform_widths`. `gradmax` did as well.

    Args:
        drop: share of the budget that is released and handed out again at the first move, in [0, 1); falls to 0.
        score: worth of held units: "effect" (of removing one, on the loss), "magnitude" (|w_in| |w_out|), "activity"
            (mean output), "utility" (of continual backprop), "random" (control), or a `WidthKeep` of your own.
        want: worth of further ones.
        grow: how new ones start; all rules keep the function.
        window: steps before a move whose effects are summed.
        mature: steps that a unit holds its place before it may go.
        currency: "parameters", or "FLOPs" of one example's forward: the moving layers, not attention's own products.

    Raises:
        ConfigError: no such score, a drop outside [0, 1), or numbers that make no sense.

    Reference: effects as Molchanov et al. (1906.10771); exchange at a fixed cost as MorphNet (1711.06798), here in
    small moves while the model trains, by gain per cost in place of one factor.
    """
    return WidthMethod(
        "width", "1906.10771", keep=named_score(score, WidthKeep, SCORES), want=want, share=by_gain, grow=grow,
        drop=cosine(share_of(drop)), mature=mature, window=window, currency=currency,
    )  # fmt: skip
