"""AdaLoRA: start with more ranks than the budget, cut by smoothed sensitivity."""

from __future__ import annotations

from realloc.errors import ConfigError
from realloc.methods.rank_method import RankMethod
from realloc.schedule import cubic
from realloc.scores.sensitivity import sensitivity


def adalora(
    rank: int | None = None,
    *,
    budget: int | None = None,
    cap: int | None = None,
    scale: float = 1.0,
    start: float = 1.5,
    beta1: float = 0.85,
    beta2: float = 0.85,
) -> RankMethod:
    """Cut the ranks of lowest sensitivity over all layers, from ``start`` times the budget down to it, along a cubic.

    Ranks really go: A, B and their moments shrink, and so does the time of a step; the freed slots are parked until
    ``handle.compact()``. ``begin`` and ``until`` of the schedule are the paper's t_i and T - t_f.

    Args:
        rank: ranks of each layer at the end, on average by parameters.
        budget: parameters at the end, instead of ``rank``.
        cap: most ranks of a layer at every moment, above ``rank``: the start stays within it, where ``start`` asks for
            more. None: as many as the start needs.
        scale: factor of the ranks' part, alpha / r.
        start: multiple of the budget held at the start, above 1; 1.5 is peft's ratio of init_r 12 to target_r 8.
        beta1: decay of the running mean of the sensitivity, peft's default.
        beta2: decay of the running mean of its spread.

    Raises:
        ConfigError: ``start`` not above 1, or more than 16; from `prepare`, a ``cap`` that leaves nothing to cut.

    Reference: AdaLoRA (2303.10512, equations 8 to 13). Where we differ: plain LoRA pairs instead of an SVD triplet, so
    no orthogonality penalty, and the importance is the mean sensitivity of the row of A plus that of B; the budget
    counts parameters, not ranks, and is met exactly; a cut rank does not come back; scores start with the first step.
    """
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not 1 < start <= 16:
        raise ConfigError(f"start is {start!r}; it is a multiple of the budget above 1 and at most 16, such as 1.5")
    return RankMethod(
        "adalora", rank, budget, cap=cap, scale=scale, reference="2303.10512", keep=sensitivity, held=cubic(start, 1.0),
        betas=(beta1, beta2),
    )  # fmt: skip
