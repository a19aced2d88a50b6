"""PARA: train uniform ranks, cut once at the end by singular values over all layers."""

from __future__ import annotations

from realloc.errors import ConfigError
from realloc.methods.rank_method import RankMethod
from realloc.schedule import linear


def para(
    rank: int | None = None,
    *,
    budget: int | None = None,
    cap: int | None = None,
    scale: float = 1.0,
    start: float = 2.0,
) -> RankMethod:
    """Train ``start`` times the budget in uniform ranks; at the last due step, cut to the budget once.

    The product of each layer is written in its singular directions, and those of least squared singular value per
    parameter go, over all layers together: the smallest change of the weights that the budget allows, up to what a
    whole rank costs. What stays starts with new moments, since its directions are new.

    Args:
        rank: ranks of each layer at the end, on average by parameters.
        budget: parameters at the end, instead of ``rank``.
        cap: most ranks of a layer at every moment, above ``rank``: the start stays within it, where ``start`` asks for
            more. None: as many as the start needs.
        scale: factor of the ranks' part, alpha / r.
        start: multiple of the budget that trains, above 1 and at most 16.

    Raises:
        ConfigError: ``start`` out of range; from `prepare`, a ``cap`` that leaves nothing to cut.

    Reference: PARA (2604.27796), from its abstract. Where we differ: the budget counts parameters, so squared values
    are divided by what a rank costs; the paper cuts ranks of equal count by one threshold after training.
    """
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not 1 < start <= 16:
        raise ConfigError(f"start is {start!r}; it is a multiple of the budget above 1 and at most 16, such as 2.0")
    return RankMethod(
        "para", rank, budget, cap=cap, scale=scale, reference="2604.27796", held=linear(start, 1.0), last_only=True
    )
