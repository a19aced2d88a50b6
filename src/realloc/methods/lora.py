"""LoRA: the same rank everywhere, held in place."""

from __future__ import annotations

from realloc.methods.rank_method import RankMethod


def lora(rank: int | None = None, *, budget: int | None = None, scale: float = 1.0) -> RankMethod:
    """Hold the same number of ranks beside every linear layer and never move one: what moving ranks must beat.

    Args:
        rank: ranks of each layer.
        budget: parameters, instead of ``rank``. What is left when every layer has equally many goes, one rank each, to
            the first layers that it pays for; what then pays for no rank is parked.
        scale: factor of the ranks' part, alpha / r.

    Reference: LoRA (2106.09685, equation 3). A starts as peft starts it (Kaiming-uniform), B at zero.
    """
    return RankMethod("lora", rank, budget, scale=scale, reference="2106.09685")
