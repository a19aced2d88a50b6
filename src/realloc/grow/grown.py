"""What a growth rule gives: start values of new units, by the name of the parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Generator, Tensor

from realloc.scores.neurons import Neurons, Part


@final
@dataclass(frozen=True, eq=False)
class Grown:
    """Start values of new units. A parameter that is not named starts at zero, a norm's factor at one.

    incoming: of what makes the units and of their norms, by parameter, ``[new units, entries of one unit]``, laid out
        as the parameter is with its units first. outgoing: of what reads them; a weight may do both.
    shifts: added to the outputs of what reads the units, by the reader's weight, ``[its rows]``.
    rewritten: of units that stay, by what reads them: which units, and their entries. They pay for a copy.
    copied: which unit each new one copies its norm and running statistics from; None: none.
    """

    incoming: Mapping[str, Tensor]
    outgoing: Mapping[str, Tensor] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    rewritten: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    copied: Tensor | None = None


@final
@dataclass(frozen=True)
class Growth:
    """A rule: ``draw(group, kept, count, generator)``; ``kept``: the worth of its units, -inf of those that go."""

    name: str
    draw: Callable[[Neurons, Tensor, int, Generator], Grown]
    products: bool = False  # whether it needs the group's products of input and output gradient


def like(values: Tensor, drawn: Tensor) -> Tensor:
    """Numbers that were drawn on the CPU in float32 or float64, as a parameter's."""
    return drawn.to(device=values.device, dtype=values.dtype)


def uniform(part: Part, count: int, generator: Generator) -> Tensor:
    """``[count, entries]``: as torch starts a layer, uniform within ``1 / sqrt(fan in)``."""
    entries = part.values.shape[1]
    drawn = torch.rand(count, entries, generator=generator, dtype=torch.float64)
    return like(part.values, (2 * drawn - 1) / max(1, entries // part.block) ** 0.5)
