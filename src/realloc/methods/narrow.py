"""Start wide, end narrow."""

from __future__ import annotations

from realloc.allocate.width_costs import Currency
from realloc.errors import ConfigError
from realloc.methods.width_method import WidthMethod
from realloc.schedule import cubic
from realloc.scores.neuron_effect import neuron_effect
from realloc.scores.neurons import WidthKeep


def narrow(
    share: float = 0.5, *, score: WidthKeep = neuron_effect, window: int = 10, currency: Currency = "parameters"
) -> WidthMethod:
    """Release the units of least effect per cost along a cubic, until ``share`` of the start's cost is left.

    A step gets cheaper with every move. What is released gave something on average: the biases behind take that over.

    Measured (benchmarks/results/units.md, 5 paired seeds): no better than a net that is narrow from the start (+0.10 ±
    0.35 points at half of the cost, -0.05 ± 0.44 at a quarter), and at a quarter worse than that net trained for the
    same FLOPs (-0.58 ± 0.42). Take it where the wide net is there already.

    Args:
        share: of the start's cost that may be spent at the end, in (0, 1].
        score: worth of held units.
        window: steps before a move whose effects are summed.
        currency: "parameters", or "FLOPs" of one example's forward: the moving layers, not attention's own products.

    Raises:
        ConfigError: a share outside (0, 1].

    Reference: effects as Molchanov et al. (1906.10771), the curve of Zhu and Gupta (1710.01878).
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ConfigError(f"share is {share!r}; it is the part of the start's cost that stays: 0 < share <= 1")
    return WidthMethod(
        "narrow", "1906.10771", keep=score, held=cubic(1.0, float(share)), window=window, currency=currency
    )
