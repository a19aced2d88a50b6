"""GSE: RigL's rule on a random few candidates."""

from __future__ import annotations

from realloc.methods.method import Method
from realloc.observe.candidates import sampled
from realloc.schedule import cosine
from realloc.scores.gradient import gradient
from realloc.scores.magnitude import magnitude


def gse(density: float, *, drop: float = 0.3, candidates: float = 1.0) -> Method:
    """Release small |w|, acquire where |gradient| is largest among a random set of ``candidates`` times the held units.

    No dense gradient is ever computed, and a unit just released cannot come back in the same move.

    Reference: GSE (2401.06898, algorithm 1; uniform distribution).
    """
    return Method(
        "gse", density, reference="2401.06898", keep=magnitude, want=gradient, candidates=sampled(candidates),
        regrow=False, drop=cosine(drop),
    )  # fmt: skip
