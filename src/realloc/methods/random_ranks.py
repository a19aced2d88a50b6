"""Control: ranks move, chosen blindly."""

from __future__ import annotations

from realloc.methods.rank_method import RankMethod
from realloc.schedule import cosine
from realloc.scores.rank_random import keep_random, want_random


def random_ranks(
    rank: int | None = None,
    *,
    budget: int | None = None,
    cap: int | None = None,
    scale: float = 1.0,
    drop: float = 0.3,
) -> RankMethod:
    """Cut ``drop`` of what is held, at random, and hand it out at random: what choosing ranks well must beat.

    Args:
        rank: ranks of each layer at the start.
        budget: parameters, instead of ``rank``.
        cap: most ranks of a layer; None: twice what it starts with.
        scale: factor of the ranks' part, alpha / r.
        drop: share of the held parameters that is handed out anew at the first move; cosine to zero.
    """
    return RankMethod(
        "random_ranks", rank, budget, cap=cap, scale=scale, keep=keep_random, want=want_random, drop=cosine(drop)
    )
