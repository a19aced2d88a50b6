"""EVA: ranks and first directions from the inputs of a few batches, before training."""

from __future__ import annotations

from realloc.methods.rank_method import RankMethod
from realloc.observe.rank_probe import RankProbe, explained_variance


def eva(
    rank: int | None = None, *, budget: int | None = None, cap: int | None = None, scale: float = 1.0
) -> RankMethod:
    """Give ranks to the input directions that explain most of a layer's variance, per parameter, and start A there.

    Fill it in with `realloc.calibrate(model, batches, methods.eva(rank=8))` before `prepare`.

    Args:
        rank: ranks of each layer, on average by parameters.
        budget: parameters, instead of ``rank``.
        cap: most ranks of a layer; None: twice the average, as peft's rho.
        scale: factor of the ranks' part, alpha / r.

    Reference: EVA (2410.07170). Where we differ: the covariance of the given batches is exact, where peft updates an
    incremental PCA until it settles; the budget is in parameters, so a component's share of the variance is divided by
    what its rank costs. Padding, by the batch's attention mask, is left out, as there.
    """
    probe = RankProbe("explained variance of the input", "input", explained_variance)
    return RankMethod("eva", rank, budget, cap=cap, scale=scale, reference="2410.07170", probe=probe)
