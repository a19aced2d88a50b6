"""Importance sampling: examples with larger gradients are visited more often, and weigh less for it."""

from __future__ import annotations

from typing import Final, Literal

import torch

from realloc.errors import ConfigError, StateError
from realloc.methods.example_method import Draw, ExampleMethod, share_of
from realloc.methods.example_score import ExampleScore, gradient_bound, last_loss
from realloc.observe.visited import Past

BY: Final = {"score": gradient_bound, "loss": last_loss}


def importance(
    share: float = 0.5, *, by: Literal["score", "loss"] = "score", floor: float = 0.1, gate: float = 1.5
) -> ExampleMethod:
    """Draw examples in proportion to a bound on their gradient, with weights 1 / (N p): unbiased, of less variance.

    Source: Katharopoulos and Fleuret 2018 (1803.00942): the bound (equation 20), and the gate: with p the normalised
    scores, tau = sqrt(N sum p^2) is by how much more a batch is worth, and below ``gate`` nothing is done (equation
    26; theirs is 1.5 in all experiments). Where we differ: scores are those of each example's last visit, which costs
    nothing, in place of a forward pass over candidates before each step; visits are spread systematically (each
    example has its expected number, rounded up or down), which leaves the mean as it is; and a part ``floor`` of p is
    uniform, so that no weight is above 1 / floor.

    Args:
        share: of the visits that every example in every epoch would cost, 0 < share <= 1.
        by: "score" (what the loop reports: `realloc.logit_gradient`) or "loss".
        floor: part of the probability that is uniform, 0 < floor <= 1.
        gate: the least tau at which it acts; 1 or more.

    Raises:
        ConfigError: no such share, or another word.
        StateError: while it trains, losses below 0 with ``by="loss"``.

    >>> importance().needs
    'score'
    """
    if by not in BY:
        raise ConfigError(f"by is {by!r}; use 'score' or 'loss'")
    return in_proportion("importance", share, BY[by], floor, gate)


def in_proportion(name: str, share: float, score: ExampleScore, floor: float, gate: float) -> ExampleMethod:
    """The rule of `importance` and `examples`, under either's name, by any score.

    Raises:
        ConfigError: as they say.
    """
    share_of("floor", floor)
    if isinstance(gate, bool) or not isinstance(gate, (int, float)) or not gate >= 1:
        raise ConfigError(f"gate is {gate!r}; it is a gain in batch size, 1 or more")

    def draw(past: Past, count: int, random: torch.Generator) -> Draw:
        worth = score(past)
        if bool((worth < 0).any()):
            raise StateError(f"{name} cannot draw by a {score.name} below 0; use a score that is 0 or more")
        worth = torch.where(worth.isnan(), worth.nanmean(), worth)  # never visited: as the others are on average
        total = float(worth.sum())
        even = 1 / len(past)
        likely = worth / total if total > 0 else torch.full_like(worth, even)  # also where nothing is known: NaN > 0
        if not float((len(past) * likely.square()).sum()) >= gate * gate:
            # from all alike: those with few visits are the easy ones, once some were drawn by their gradient
            return Draw(torch.randperm(len(past), generator=random)[:count], torch.ones(count, dtype=torch.float64))
        likely = floor * even + (1 - floor) * likely
        index = spread(likely, count, random)
        return Draw(index, even / likely[index])

    return ExampleMethod(name, draw, share=share, needs=score.needs, reference="1803.00942")


def spread(likely: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """``count`` draws, ascending: example i ``count * likely[i]`` times, rounded up or down at random.

    >>> spread(torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64), 4, torch.Generator()).tolist()
    [0, 0, 1, 2]
    """
    order = torch.randperm(likely.numel(), generator=random)  # neighbours in the data are not drawn one for another
    ends = likely[order].cumsum(0)
    points = (torch.arange(count, dtype=torch.float64) + torch.rand(1, generator=random, dtype=torch.float64)) / count
    found = torch.searchsorted(ends, points * ends[-1], right=True)
    return order[found.clamp(max=likely.numel() - 1)].sort().values
