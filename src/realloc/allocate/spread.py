"""Share a budget among rooms by weight, with a message that names the sites."""

from __future__ import annotations

from collections.abc import Sequence

from realloc.allocate.apportion import apportion
from realloc.allocate.room import Room
from realloc.errors import ConfigError, plain


def spread(weights: Sequence[float], rooms: Sequence[Room], budget: int) -> tuple[int, ...]:
    """Give each room its share of the budget in proportion to its weight, exactly and within its bounds.

    Raises:
        ConfigError: the rooms need more, or can hold less, than the budget; the message says how much, and where.

    >>> spread([1, 1], [Room("a", (1, 2), 0, 2), Room("b", (3, 3), 0, 9)], 7)
    (2, 5)
    """
    lowest, highest = sum(room.least for room in rooms), sum(room.most for room in rooms)
    if budget < lowest:
        tightest = max(rooms, key=lambda room: room.least)
        raise ConfigError(
            f"budget={budget} units is less than the {lowest} that {len(rooms)} sites need at least "
            f"(most of all {plain(tightest.name)!r}: {tightest.least}); raise the density or name fewer layers"
        )
    if budget > highest:
        raise ConfigError(
            f"budget={budget} units is more than the {highest} that {len(rooms)} sites can hold; "
            f"lower the density or name more layers"
        )
    return apportion(weights, budget, [room.least for room in rooms], [room.most for room in rooms])
