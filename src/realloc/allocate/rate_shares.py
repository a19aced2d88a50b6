"""A budget of learning rate: what is held constant, and whole shares that hold it exactly.

Shares are integers, in millionths: of the scheduled rate, or for the geometric mean of its natural logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

from realloc.allocate.apportion import apportion
from realloc.errors import ConfigError

WHOLE: Final = 1_000_000
Numbers = Sequence[float]


@final
@dataclass(frozen=True)
class Hold:
    """What stays constant while shares move between groups.

    Args:
        name: as users call it.
        share: (weights, most, moved) -> shares; ``weights`` above 0 are multipliers up to a common factor, ``moved`` is
            the relative movement that each group would have at share 1.
        rate: share -> multiplier of the scheduled rate.
        even: the share of a group where all are alike.
        spent: (shares, moved) -> units used of ``budget(groups)``.
        budget: units for so many groups.
        bounds: most -> the least and the greatest share.
        needs_movement: whether ``moved`` is read.
    """

    name: str
    share: Callable[[Numbers, float, Numbers], tuple[int, ...]]
    rate: Callable[[int], float]
    even: int
    spent: Callable[[Sequence[int], Numbers], int]
    budget: Callable[[int], int]
    bounds: Callable[[float], tuple[int, int]]
    needs_movement: bool = False


def _linear_bounds(most: float) -> tuple[int, int]:
    return math.ceil(WHOLE / most), math.floor(WHOLE * most)


def _log_bounds(most: float) -> tuple[int, int]:
    bound = math.floor(WHOLE * math.log(most))
    return -bound, bound


def mean_shares(weights: Numbers, most: float, moved: Numbers = ()) -> tuple[int, ...]:
    """Shares in proportion to weights, whose mean is exactly 1, each within [1 / most, most].

    >>> mean_shares([1.0, 3.0], 3.0)
    (500000, 1500000)
    """
    low, high = _linear_bounds(most)
    return apportion(weights, WHOLE * len(weights), [low] * len(weights), [high] * len(weights))


def geometric_shares(weights: Numbers, most: float, moved: Numbers = ()) -> tuple[int, ...]:
    """Logarithms of multipliers in proportion to weights, whose sum is exactly 0, each within [-log most, log most].

    >>> geometric_shares([1.0, math.e], 3.0)
    (-500000, 500000)
    """
    _, bound = _log_bounds(most)
    wanted = [round(WHOLE * math.log(weight)) for weight in weights]

    def at(shift: int) -> list[int]:
        return [min(bound, max(-bound, one + shift)) for one in wanted]

    low, high = -max(wanted) - bound, -min(wanted) + bound  # all at the least, all at the most
    while high - low > 1:  # the largest shift whose sum is not above 0
        middle = (low + high) // 2
        low, high = (middle, high) if sum(at(middle)) <= 0 else (low, middle)
    shares = at(high) if sum(at(high)) <= 0 else at(low)
    for index in range(len(shares)):  # one unit each to those with room, until nothing is left
        if sum(shares) < 0 and shares[index] < bound:
            shares[index] += 1
    return tuple(shares)


def movement_shares(weights: Numbers, most: float, moved: Numbers) -> tuple[int, ...]:
    """Multipliers in proportion to weights at which ``sum_l moved_l m_l^2`` is that of multipliers 1, rounded down.

    A group that did not move costs nothing, so its share is 1, whatever its weight.

    >>> movement_shares([1.0, 2.0], 3.0, [4.0, 1.0])
    (790569, 1581139)
    """
    low, high = _linear_bounds(most)
    total = math.fsum(moved)

    def at(scale: float) -> tuple[int, ...]:
        rows = zip(weights, moved, strict=True)
        return tuple(min(high, max(low, math.floor(WHOLE * scale * w))) if m > 0 else WHOLE for w, m in rows)

    least, best = 0.0, most / min(weights)
    for _ in range(200):
        middle = (least + best) / 2
        least, best = (middle, best) if _moved(at(middle), moved) <= total else (least, middle)
    return at(least)


def shares_among(hold: Hold, weights: Numbers, most: float, moved: Numbers, trains: Sequence[bool]) -> tuple[int, ...]:
    """Shares of the groups that train, within the budget of so many; the others keep that of groups all alike.

    >>> shares_among(HOLDS["mean"], [1.0, 9.0, 3.0], 3.0, [1.0, 1.0, 1.0], [True, False, True])
    (500000, 1000000, 1500000)
    """
    among = [place for place, one in enumerate(trains) if one]
    found = iter(hold.share([weights[place] for place in among], most, [moved[place] for place in among]))
    return tuple(next(found) if one else hold.even for one in trains)


def _moved(shares: Sequence[int], moved: Numbers) -> float:
    return math.fsum((share / WHOLE) ** 2 * one for share, one in zip(shares, moved, strict=True))


def _spent_movement(shares: Sequence[int], moved: Numbers) -> int:
    total = math.fsum(moved)
    return WHOLE if not total else math.floor(WHOLE * _moved(shares, moved) / total)


def _linear(share: int) -> float:
    return share / WHOLE


MEAN: Final = Hold(
    "mean", mean_shares, _linear, WHOLE, lambda shares, moved: sum(shares), lambda groups: WHOLE * groups,
    _linear_bounds,
)  # fmt: skip
GEOMETRIC: Final = Hold(
    "geometric mean", geometric_shares, lambda share: math.exp(share / WHOLE), 0, lambda shares, moved: sum(shares),
    lambda groups: 0, _log_bounds,
)  # fmt: skip
MOVEMENT: Final = Hold(
    "relative movement", movement_shares, _linear, WHOLE, _spent_movement, lambda groups: WHOLE, _linear_bounds,
    needs_movement=True,
)  # fmt: skip
HOLDS: Final = {"mean": MEAN, "geometric": GEOMETRIC, "movement": MOVEMENT}


def hold_of(name: str) -> Hold:
    """What a word holds constant.

    Raises:
        ConfigError: another word.
    """
    if name not in HOLDS:
        raise ConfigError(f"hold is {name!r}; use one of {', '.join(map(repr, HOLDS))}")
    return HOLDS[name]
