"""What a decision may know of one site, and the views that scores get of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from realloc.observe.gradients import CandidateGradient, GradientSource
from realloc.scores.seen import Seen
from realloc.sites.grid import Grid


@final
@dataclass(frozen=True, eq=False)
class Standing:
    """What a decision may know of one site."""

    name: str
    grid: Grid
    shape: tuple[int, ...]
    places: Tensor  # int64 [h], sorted
    values: Tensor  # [h, size]
    gradient: GradientSource | None = None
    average: Tensor | None = None  # [units, size]
    age: Tensor | None = None  # int64 [h], steps since acquired
    active: bool = True  # took part in a backward of this step; if not, nothing of it moves
    candidates: CandidateGradient | None = None  # what was collected of them, where the method collects over steps
    least: int = 1  # units that it must keep
    impression: Tensor | None = None  # float64 [h], where the method collects it

    def seen_held(self, generator: torch.Generator, gradient: Tensor | None) -> Seen:
        """The view a keep score gets: the held units."""
        average = None if self.average is None else self.average[self.places]
        grid = (self.grid.rows, self.grid.columns)
        values, seen = self.values, self.impression
        return Seen(self.places, grid, self.places, generator, values, gradient, average, self.age, seen)

    def seen_elsewhere(self, places: Tensor, held: Tensor, generator: torch.Generator, gradient: Tensor | None) -> Seen:
        """The view a want score gets: units at other places, whose values are zero; ``held`` are those that stay."""
        average = None if self.average is None else self.average[places]
        nothing = self.values.new_zeros(1, 1).expand(places.numel(), self.grid.size)
        grid = (self.grid.rows, self.grid.columns)
        return Seen(places, grid, held, generator, nothing, gradient, average)
