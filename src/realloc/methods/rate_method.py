"""A method over learning rates: which share of a fixed budget of rate each group of parameters gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from realloc.allocate.rate_shares import MEAN, Hold
from realloc.errors import ConfigError
from realloc.sites.rate_units import By


@final
@dataclass(frozen=True, eq=False)
class RatePast:
    """What a method may know when shares are set. One number a group, groups in order from the input.

    What is measured is the mean over the steps of the window, of norms the root mean square; at the start it is zero.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]  # parameters
    gradient: tuple[float, ...]  # norm
    weight: tuple[float, ...]  # norm
    movement: tuple[float, ...]  # squared norm of the update
    gain: tuple[float, ...]  # -<gradient, update>: by how much the step lowers the loss, to first order
    rates: tuple[float, ...]  # multipliers now
    matrices: tuple[tuple[Tensor, ...], ...]  # weights of two and more dimensions, as they are now; not to be changed
    phase: float  # 0 at the schedule's begin, 1 at its end
    draw: Callable[[str], torch.Generator]  # random numbers by a word; the same on every rank and after a resume
    heard: tuple[bool, ...] = ()  # whether any step since the last decision had a gradient; (): as in the window

    def __len__(self) -> int:
        return len(self.names)

    @property
    def trains(self) -> tuple[bool, ...]:
        """Which groups had a gradient; where none had, as at the start, all of them. The others keep a share of one."""
        had = self.heard or tuple(one > 0 for one in self.gradient)
        return had if any(had) else (True,) * len(self)


@final
@dataclass(frozen=True)
class RateMethod:
    """The parts of one way to share learning rate among groups of parameters.

    Args:
        name: as users call it.
        weigh: from what is known to one weight a group, above 0: multipliers of the rate up to a common factor. Of
            groups without a gradient (`RatePast.trains`) it is not read: their share is one.
        reference: arXiv number of its paper.
        moves: whether it shares anew at the schedule's steps; else once, at the start.
        hold: what stays constant.
        most: no multiplier is above it or below its inverse; above 1.
        window: steps up to a decision that are measured, 1 or more.
        by: what a group is: "layers" of the model, the optimizer's own "groups", or a function from a parameter's name
            to anything that tells groups apart.
    """

    name: str
    weigh: Callable[[RatePast], Sequence[float]]
    reference: str = ""
    moves: bool = False
    hold: Hold = MEAN
    most: float = 3.0
    window: int = 10
    by: By = "layers"

    def __post_init__(self) -> None:
        above("most", self.most, 1)
        if self.hold.needs_movement and not self.moves:
            raise ConfigError(f"hold is 'movement', and nothing has moved when {self.name} shares the rate; use 'mean'")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ConfigError(f"window is {self.window!r}; it is a number of steps, 1 or more")
        if not callable(self.by) and self.by not in ("layers", "groups"):
            raise ConfigError(f"by is {self.by!r}; use 'layers', 'groups' or a function of a parameter's name")

    def on(self, by: By) -> RateMethod:
        """The same method over other groups."""
        return replace(self, by=by)


def above(name: str, value: float, least: float) -> float:
    """Refuse what is not a number above the least."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not known or not value > least:
        raise ConfigError(f"{name} is {value!r}; it is a number above {least:g}")
    return float(value)
