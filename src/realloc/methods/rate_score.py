"""What a layer is worth in learning rate: from what is known of all groups to one weight for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

from realloc.methods.rate_method import RatePast

WINDOW: Final = 10  # steps up to a decision that are measured, where a score does not say


@final
@dataclass(frozen=True)
class RateScore:
    """One way to weigh groups of parameters.

    Args:
        name: as users call it.
        weigh: from what is known to one weight a group, above 0: multipliers of the rate up to a common factor.
        moves: whether it is asked anew at the schedule's steps; else once, at the start, when nothing is measured yet.
        window: steps up to a decision that it wants measured, 1 or more.
        reference: arXiv number of its paper.
    """

    name: str
    weigh: Callable[[RatePast], Sequence[float]]
    moves: bool = True
    window: int = WINDOW
    reference: str = ""


even = RateScore("even", lambda past: [1.0] * len(past), moves=False)
"""The control: every group has the scheduled rate."""
