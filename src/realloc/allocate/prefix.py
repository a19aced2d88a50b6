"""How many layers to freeze, from how well each depth foretells the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from realloc.errors import ConfigError

SURE: Final = 2.0  # standard errors that tell two depths apart


@final
@dataclass(frozen=True)
class Depths:
    """What probes of each depth say: depth 0 is what enters the lowest layer, depth L what leaves the highest.

    Prints as a table.
    """

    errors: tuple[float, ...]  # mean leave-one-out error by depth
    over_bottom: tuple[tuple[float, float], ...]  # by how much depth 0 is worse, and the standard error of that
    best: int  # the depth with the smallest error
    examples: int

    @property
    def separated(self) -> bool:
        """Whether the best depth is surely better than what enters the lowest layer, or depth 0 is best itself."""
        gain, error = self.over_bottom[self.best]
        return self.best == 0 or gain > SURE * error

    @property
    def frozen(self) -> int:
        """Layers to freeze, from the input: those below the best depth, yet never the highest, which the task may bend.

        0 where no depth surely knows more than the embeddings do: what the layers were trained for is not this.
        """
        gain, error = self.over_bottom[self.best]
        return min(self.best, len(self.errors) - 2) if gain > SURE * error else 0

    def __str__(self) -> str:
        lines = [f"leave-one-out error of linear probes on {self.examples:,} examples, by depth:"]
        for depth, (mean, (gain, error)) in enumerate(zip(self.errors, self.over_bottom, strict=True)):
            mark = " best" if depth == self.best else ""
            lines.append(f"  {depth:>3} {mean:.4f}  {gain:+.4f} ± {SURE * error:.4f} against depth 0{mark}")
        layers = len(self.errors) - 1
        if self.frozen:
            lines.append(f"freeze the {self.frozen} lowest of {layers} layers")
        else:
            lines.append(f"freeze none of {layers} layers: no depth surely knows more than what enters the lowest one")
        return "\n".join(lines)


def depths_of(errors: Sequence[Tensor]) -> Depths:
    """Compare the errors of the same examples at each depth, pair by pair.

    Args:
        errors: float ``[n]`` of each depth, from the lowest; two or more.

    Raises:
        ConfigError: fewer than two depths, or counts of examples that differ.

    >>> found = depths_of([torch.tensor([1.0, 1.2, 0.9]), torch.tensor([0.5, 0.8, 0.4]), torch.tensor([0.6, 0.9, 0.5])])
    >>> found.best, found.frozen
    (1, 1)
    """
    if len(errors) < 2 or len({len(one) for one in errors}) != 1:
        raise ConfigError("the errors of two depths or more are compared, each for the same examples")
    bottom = errors[0].double()
    gains = [bottom - one.double() for one in errors]
    means = tuple(float(one.double().mean()) for one in errors)
    n = len(bottom)
    spread = [float(gain.std()) / math.sqrt(n) if n > 1 else math.inf for gain in gains]
    best = int(torch.tensor(means).argmin())
    return Depths(means, tuple((float(g.mean()), s) for g, s in zip(gains, spread, strict=True)), best, n)
