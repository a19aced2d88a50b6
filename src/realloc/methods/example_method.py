"""A method over examples: which of them an epoch visits, and what each visit weighs in the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from realloc.errors import ConfigError, StateError
from realloc.observe.visited import Past

Need = Literal["loss", "score"]


@final
@dataclass(frozen=True, eq=False)
class Draw:
    """The visits of one epoch, in no order: examples (int64) and the weight of each visit (float64), of one shape.

    Weights are scaled so that the mean of weight times loss over the visits estimates the mean loss of all examples.
    """

    index: Tensor
    weight: Tensor


@final
@dataclass(frozen=True)
class ExampleMethod:
    """The parts of one way to spend a budget of example visits.

    Args:
        name: as users call it.
        draw: from what is known, a number of visits and random numbers to exactly so many visits.
        share: of the visits that every example in every epoch would cost, 0 < share <= 1.
        full: share of the epochs, the last ones, that visit every example once with weight 1; part of the budget.
        over: candidates for each visit, 1 or more. Above 1 the loop looks at ``over`` times as many examples without a
            gradient, and `realloc.Visits.choose` picks those that are trained.
        worth: from example numbers and their losses now to scores, the larger the better; for ``over`` above 1.
        needs: what must have been reported before the second draw: "loss", "score" or nothing.
        reference: arXiv number of its paper.
    """

    name: str
    draw: Callable[[Past, int, torch.Generator], Draw]
    share: float = 1.0
    full: float = 0.0
    over: int = 1
    worth: Callable[[Tensor, Tensor], Tensor] | None = None
    needs: Need | None = None
    reference: str = ""

    def __post_init__(self) -> None:
        share_of("share", self.share)
        if isinstance(self.full, bool) or not isinstance(self.full, (int, float)) or not 0 <= self.full < 1:
            raise ConfigError(f"full is {self.full!r}; it is a share of the epochs: 0 <= full < 1, such as 0.125")
        if isinstance(self.over, bool) or not isinstance(self.over, int) or self.over < 1:
            raise ConfigError(f"over is {self.over!r}; it is a number of candidates for each visit, 1 or more")
        if (self.over > 1) != (self.worth is not None):
            raise ConfigError("worth= says which of several candidates is trained: give it with over above 1, only")


def share_of(name: str, value: float) -> float:
    """Refuse what is no share above nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ConfigError(f"{name} is {value!r}; it is a share: 0 < {name} <= 1, such as 0.5")
    return float(value)


def least_visited(past: Past, count: int, random: torch.Generator) -> Tensor:
    """``count`` examples, those with the fewest visits first, ties at random: no example twice."""
    order = torch.randperm(len(past), generator=random)
    return order[torch.argsort(past.visits[order], stable=True)[:count]]


def exact(drawn: Draw, count: int, examples: int, name: str) -> Draw:
    """Refuse a draw that is not exactly so many visits of examples that there are.

    Raises:
        StateError: it is not; the budget would drift.
    """
    index, weight = drawn.index, drawn.weight
    fits = index.dtype == torch.int64 and index.shape == (count,) == weight.shape and weight.dtype == torch.float64
    if not fits or (count and not (int(index.min()) >= 0 and int(index.max()) < examples)):
        raise StateError(f"{name}: a draw of {tuple(index.shape)} visits where exactly {count} of {examples} are due")
    if not bool((weight.isfinite() & (weight > 0)).all()):
        raise StateError(f"{name}: a weight is not finite or not above 0")
    return drawn
