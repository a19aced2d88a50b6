"""InfoBatch: examples that are learnt well are visited less often, and weigh more when they are."""

from __future__ import annotations

import torch

from realloc.errors import ConfigError
from realloc.methods.example_method import Draw, ExampleMethod, share_of
from realloc.observe.visited import Past


def infobatch(share: float = 0.7, *, drop: float = 0.5, full: float = 0.125) -> ExampleMethod:
    """Leave out a random part of the examples whose last loss is below the mean; the rest of those weighs more for it.

    Source: Qin et al. 2024, InfoBatch (2303.04947), equation 3 and section 3.4. Where we differ: the number of visits
    is fixed, so that the part left out follows from the budget. Where those below the mean are too few to leave out so
    many at ``drop``, the next higher losses join them; at a budget at which all would have to, it is a random subset.
    Weights are exact for what was drawn, also their mean, which is 1: in the authors' code the mean of a batch is
    over the visits that are left, so that a step is larger than planned. The last epochs really visit everything with
    weight 1; in the authors' package they keep old weights unless 0.875 of the epochs is a whole number.

    Args:
        share: of the visits that every example in every epoch would cost, with those of the full epochs.
        drop: the most that is left out of the low ones, 0 < drop < 1 (paper: 0.5, so weights of at most 2).
        full: share of the epochs, the last ones and one at least, in which every example is visited (paper: 0.125).

    Raises:
        ConfigError: no such shares; at `realloc.Visits`, the full epochs alone cost more than the budget.

    >>> infobatch().needs, infobatch().full
    ('loss', 0.125)
    """
    if share_of("drop", drop) == 1:
        raise ConfigError("drop is 1, so that low losses would never come again; 0 < drop < 1, such as 0.5")

    def draw(past: Past, count: int, random: torch.Generator) -> Draw:
        left_out = len(past) - count
        order = torch.randperm(len(past), generator=random)  # ties fall at random
        if bool(past.loss.isnan().all()):
            return Draw(order[:count], torch.ones(count, dtype=torch.float64))
        known = torch.nan_to_num(past.loss, nan=float("inf"))  # never visited: not known to be learnt
        order = order[torch.argsort(known[order], stable=True)]
        below = int((past.loss < past.loss.nanmean()).sum())
        low = min(len(past), max(below, -int(-left_out // drop)))
        kept = order[:low][torch.randperm(low, generator=random)[: low - left_out]]
        weight = torch.ones(count, dtype=torch.float64)
        weight[: kept.numel()] = low / max(1, kept.numel())
        return Draw(torch.cat([kept, order[low:]]), weight * (count / len(past)))

    return ExampleMethod("infobatch", draw, share=share, full=full, needs="loss", reference="2303.04947")
