"""GoRA: ranks from weights and gradients of a few batches, before training."""

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
) -> RankMethod:
    """Share the budget in proportion to each layer's mean ``|W G|``, G its gradient over a few batches.

    Fill it in with `realloc.calibrate(model, batches, methods.gora(rank=8))` before `prepare`.

    Args:
        rank: ranks of each layer, on average by parameters.
        budget: parameters, instead of ``rank``.
        cap: most ranks of a layer; None: twice the average.
        scale: factor of the ranks' part, alpha / r.
        least: fewest ranks of a layer, 0 or more.

    Raises:
        ConfigError: ``least`` that is no such number.

    Reference: GoRA (2502.12171). Where we differ: the shares are exact in parameters, where rounding and clamping leave
    the authors' budget approximate; B starts at zero instead of at the gradient's pseudo-inverse, so that the function
    is the pre-trained one at the start. All gradients of the layers are in memory at once while it is measured.
    """
    if isinstance(least, bool) or not isinstance(least, int) or least < 0:
        raise ConfigError(f"least is {least!r}; it is a number of ranks, 0 or more")
    probe = RankProbe("weight times gradient", "gradient", partial(weight_times_gradient, least=least))
    return RankMethod("gora", rank, budget, cap=cap, scale=scale, reference="2502.12171", probe=probe)
