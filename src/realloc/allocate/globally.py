"""The counts of one ranking over all sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from realloc.allocate.room import Allocator, Room
from realloc.errors import ConfigError, StateError, plain


def globally(scores: Sequence[Tensor]) -> Allocator:
    """Build the rule that ranks the units of all sites together and counts the winners of each site.

    Within its bounds: the best ``least`` of a site are always in, none beyond its best ``most`` ever is. Selecting the
    best of each site by the same scores then gives the global top-k. Ties go to the earlier site. Scores must be
    comparable across sites, so divide by cost first where costs differ.

    Args:
        scores: one float tensor ``[u]`` for each room, in the rooms' order.

    Raises:
        ConfigError: on the call, for a budget that the rooms or the scores cannot meet.
        StateError: on the call, for a score that is NaN.

    Reference: global magnitude in GraNet (2106.10404) and GMP. Where we differ: the authors cut by a threshold, which
    loses or adds units on ties; here the count is exact.

    >>> rooms = [Room("a", (1, 3), 1, 3), Room("b", (1, 3), 0, 3)]
    >>> globally([torch.tensor([0.1, 0.2, 0.3]), torch.tensor([5.0, 6.0, 0.15])])(rooms, 4)
    (2, 2)
    """

    def allocate(rooms: Sequence[Room], budget: int) -> tuple[int, ...]:
        if len(scores) != len(rooms):
            raise ConfigError(f"globally got {len(scores)} score tensors for {len(rooms)} sites; pass one each")
        contested = []
        for room, score in zip(rooms, scores, strict=True):
            if bool(torch.isnan(score).any()):
                raise StateError(f"site {plain(room.name)!r} has a score that is NaN; skip this move")
            if len(score) < room.least:
                raise ConfigError(
                    f"site {plain(room.name)!r} has {len(score)} scores for least={room.least}; score every unit"
                )
            ranked = torch.sort(score, descending=True).values
            contested.append(ranked[room.least : room.most].double().cpu())
        wanted = budget - sum(room.least for room in rooms)
        pool = torch.cat(contested) if contested else torch.zeros(0)
        if not 0 <= wanted <= len(pool):
            low = budget - wanted
            raise ConfigError(f"budget={budget} units does not fit the sites; pass {low} to {low + len(pool)}")
        if not wanted:
            return tuple(room.least for room in rooms)
        threshold = torch.topk(pool, wanted, sorted=False).values.min()
        above = [int((part > threshold).sum()) for part in contested]
        left = wanted - sum(above)
        result = []
        for room, part, count in zip(rooms, contested, above, strict=True):
            ties = min(left, int((part == threshold).sum()))
            left -= ties
            result.append(room.least + count + ties)
        return tuple(result)

    return allocate
