"""Egeria: the lowest layer that trains freezes once what it makes of a batch has stopped changing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from realloc.cache.settings import USUAL, Cache
from realloc.errors import ConfigError
from realloc.methods.layers import Chosen, LayerMethod, Turn, count_of


def egeria(
    tolerance: float = 0.2, *, tests: int = 3, window: int = 5, thaw: float = 10.0, cache: Cache | None = USUAL
) -> LayerMethod:
    """Freeze the lowest layer that trains when its plasticity has levelled off; let all train when the rate drops.

    Source: Wang et al. 2023, Egeria (2201.06227). At each of the schedule's steps the output of the lowest layer that
    trains is compared with that of a reference on the same batch (`realloc.observe.plasticity.dissimilarity`). The
    values are smoothed by a moving average, a line is fitted to the last of them, and once its slope has stayed under a
    threshold for some tests, the layer freezes and the next one is tested. When the learning rate has fallen
    by a factor since all layers trained, all train again, and half as many tests are asked for from then on.

    Where we differ. The reference there is an int8 copy of the whole model that runs on the CPU beside the training and
    is renewed from time to time; here it is an exact copy of the tested layer as it was when its turn came, run on the
    very input of the layer: no rounding, no second model, no renewal in the middle of a fit, and plasticity is the way
    the layer has gone. Both run without dropout. The threshold is relative to the steepest slope of the same layer,
    since in fine-tuning plasticity is small from the start; the highest layer never freezes.

    Args:
        tolerance: share of the layer's steepest slope under which it counts as level, 0 < tolerance < 1.
        tests: in a row that must be level; halved at each thaw, rounded up.
        window: values in the moving average, and in the fit, 2 or more; a layer freezes after ``window + tests - 1`` at
            the earliest.
        thaw: by what factor the learning rate must fall, above 1; ``math.inf``: what is frozen stays frozen. A rate
            that goes to zero smoothly falls by any factor too.
        cache: of the frozen layers' output.

    Raises:
        ConfigError: a number out of range.

    >>> egeria(0.1, tests=2).needs
    frozenset({'plasticity'})
    """
    count_of("tests", tests)
    count_of("window", window, least=2)
    _within("tolerance", tolerance, 0, 1)
    if thaw != math.inf:
        _within("thaw", thaw, 1, math.inf)

    def choose(turn: Turn) -> Chosen:
        every = tuple(range(turn.count))
        frozen = len(turn.on) < turn.count
        if turn.number == 0 or (frozen and turn.rate * thaw <= 1.0):
            return every
        asked = -(-tests // 2**turn.thaws)
        slopes = slopes_of(turn.plasticity, window)
        level = tolerance * max(map(abs, slopes), default=0.0)
        settled = len(slopes) >= asked and all(abs(slope) < level for slope in slopes[-asked:])
        return turn.on[1:] if settled and len(turn.on) > 1 else turn.on

    return LayerMethod(
        "egeria", choose, reference="2201.06227", moves=True, needs=frozenset({"plasticity"}), embeddings="lowest",
        cache=cache,
    )  # fmt: skip


def slopes_of(values: Sequence[float], window: int) -> list[float]:
    """Slopes of the least-squares lines through each ``window`` values that follow each other, smoothed first.

    Smoothed means the mean of the last ``window`` values; of the first ones, of those there are.

    >>> slopes_of([0.0, 1.0, 2.0, 3.0], 2)
    [0.5, 1.0, 1.0]
    """
    smooth = [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]
    middle = (window - 1) / 2
    spread = sum((i - middle) ** 2 for i in range(window))
    return [
        sum((i - middle) * smooth[first + i] for i in range(window)) / spread
        for first in range(len(smooth) - window + 1)
    ]


def _within(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low < value < high:
        raise ConfigError(f"{name} is {value!r}; use {low} < {name} < {high}")
