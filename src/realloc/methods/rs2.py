"""RS2: a random subset, drawn anew each epoch. The control that stands beside every other choice of examples."""

from __future__ import annotations

import torch

from realloc.errors import ConfigError
from realloc.methods.example_method import Draw, ExampleMethod, least_visited
from realloc.observe.visited import Past


def rs2(share: float = 0.5, *, cycle: bool = True) -> ExampleMethod:
    """Visit a random subset in each epoch, every visit with weight 1.

    Source: Okanovic et al. 2023, Repeated Random Sampling (2305.18424), both variants of its section 3. Where we
    differ: the number of visits is fixed over the whole run, to the unit.

    Args:
        share: of the visits that every example in every epoch would cost, 0 < share <= 1.
        cycle: True draws from those with the fewest visits so far ("without replacement": all examples come before
            any comes again); False draws each epoch's subset from all.

    Raises:
        ConfigError: no share.

    >>> rs2(0.5).share, rs2(0.5).needs
    (0.5, None)
    """
    if not isinstance(cycle, bool):
        raise ConfigError(f"cycle is {cycle!r}; use True or False")

    def draw(past: Past, count: int, random: torch.Generator) -> Draw:
        index = least_visited(past, count, random) if cycle else torch.randperm(len(past), generator=random)[:count]
        return Draw(index, torch.ones(count, dtype=torch.float64))

    return ExampleMethod("rs2", draw, share=share, reference="2305.18424")
