"""SNFS: move between layers by momentum."""

from __future__ import annotations

from realloc.allocate.momentum_share import momentum_share
from realloc.methods.method import Method
from realloc.schedule import cosine
from realloc.scores.magnitude import magnitude
from realloc.scores.momentum import momentum


def snfs(density: float, *, drop: float = 0.5, decay: float = 0.9) -> Method:
    """Release small |w|; share what was released between layers by mean |momentum|; acquire by largest |momentum|.

    Args:
        density: share of the weights held, (0, 1].
        drop: share of a layer's held weights released at the first move; cosine to zero.
        decay: of the running mean of the dense gradient, kept for every weight: memory and time of a dense layer.

    Reference: Sparse Networks from Scratch (1907.04840, algorithm 1). Where we differ: the mean is our own buffer, not
    the optimizer's, so any optimizer works; counts are exact integers, solved under the layers' capacities.
    """
    return Method(
        "snfs", density, reference="1907.04840", keep=magnitude, want=momentum, share=momentum_share,
        drop=cosine(drop), average=decay,
    )  # fmt: skip
