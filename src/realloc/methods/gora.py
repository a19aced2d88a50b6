"""GoRA: ranks and first values from weights and gradients of a few batches, before training."""

from __future__ import annotations

from functools import partial

from realloc.errors import ConfigError
from realloc.methods.rank_method import RankMethod
from realloc.observe.rank_probe import RankProbe, weight_times_gradient


def gora(
    rank: int | None = None,
    *,
    budget: int | None = None,
    cap: int | None = None,
    scale: float = 1.0,
    least: int = 1,
    gamma: float = 0.05,
) -> RankMethod:
    """Share the budget in proportion to each layer's mean ``|W G|``, G its gradient over a few batches.

    A is random and B starts at the gradient seen through it, so that training begins one step down the slope. The
    function jumps there: the plan of `prepare` says by how much, layer by layer.

    Fill it in with `realloc.calibrate(model, batches, methods.gora(rank=8))` before `prepare`.

    Args:
        rank: ranks of each layer, on average by parameters.
        budget: parameters, instead of ``rank``.
        cap: most ranks of a layer; None: twice the average.
        scale: factor of the ranks' part, alpha / r.
        least: fewest ranks of a layer, 0 or more.
        gamma: norm of that first step over the gradient's, 0 to 1; 0: B starts at zero and nothing jumps.

    Raises:
        ConfigError: ``least`` or ``gamma`` out of range.

    Reference: GoRA (2502.12171). Where we differ: the shares are exact in parameters, where rounding and clamping leave
    the authors' budget approximate; ``scale`` is one for all layers, where theirs goes with the root of the rank (the
    first step is of the same length all the same). All gradients are in memory at once while it is measured.
    """
    if isinstance(least, bool) or not isinstance(least, int) or least < 0:
        raise ConfigError(f"least is {least!r}; it is a number of ranks, 0 or more")
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 <= gamma <= 1:
        raise ConfigError(f"gamma is {gamma!r}; it is the norm of the first step over the gradient's, 0 to 1")
    choose = partial(weight_times_gradient, least=least, gamma=float(gamma), scale=scale)
    probe = RankProbe("weight times gradient", "gradient", choose)
    return RankMethod("gora", rank, budget, cap=cap, scale=scale, reference="2502.12171", probe=probe)
