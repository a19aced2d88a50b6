"""A score: a name, what it needs measured, and a pure function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final, get_args

from torch import Tensor

from realloc.errors import ConfigError, StateError, nearest
from realloc.scores.seen import Seen

Need = Literal["values", "gradient", "average", "impression"]
"""What can be measured of a unit."""


@final
@dataclass(frozen=True)
class Score:
    """The estimated worth of each unit: higher is worth more.

    ``measure`` maps what is seen to ``[u]`` numbers, deterministic for equal input. The same type serves as keep
    score (of held units) and as want score (of units not held).

    Raises:
        ConfigError: a need that does not exist.
        StateError: on a call, when a need was not measured or the result is not ``[u]`` floats.

    >>> import torch
    >>> least_place = Score("least place", frozenset(), lambda seen: -seen.places.double())
    >>> empty = torch.zeros(0, dtype=torch.long)
    >>> least_place(Seen(torch.tensor([1, 4]), (2, 3), empty, torch.Generator())).tolist()
    [-1.0, -4.0]
    """

    name: str
    needs: frozenset[Need]
    measure: Callable[[Seen], Tensor]

    def __post_init__(self) -> None:
        for need in self.needs:
            if need not in get_args(Need):
                raise ConfigError(
                    f"score {self.name!r} needs {need!r}, which is never measured; "
                    f"choose from {', '.join(get_args(Need))}{nearest(str(need), get_args(Need))}"
                )

    def __call__(self, seen: Seen) -> Tensor:
        """Measure and check the shape."""
        for need in sorted(self.needs):
            seen.need(need)
        result = self.measure(seen)
        if result.shape != (len(seen),) or not result.is_floating_point():
            raise StateError(
                f"score {self.name!r} gave {result.dtype} of shape {tuple(result.shape)} for {len(seen)} units; "
                f"return one float per unit, shape ({len(seen)},)"
            )
        return result
