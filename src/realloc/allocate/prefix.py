"""Which layers to freeze, to train and to drop, from how well each depth foretells the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from realloc.errors import ConfigError

SURE: Final = 2.0  # standard errors that tell two depths apart
KNOWS: Final = 3.0  # those by which the best depth must beat the embeddings: it is the best of many, on several looks


@final
@dataclass(frozen=True)
class Depths:
    """What probes of each depth say: depth 0 is what enters the lowest layer, depth L what leaves the highest.

    Prints as a table.
    """

    errors: tuple[float, ...]  # mean leave-one-out error by depth
    over_bottom: tuple[tuple[float, float], ...]  # by how much depth 0 is worse, and the standard error of that
    over_top: tuple[tuple[float, float], ...]  # by how much depth L is worse
    best: int  # the depth with the smallest error
    examples: int

    @property
    def separated(self) -> bool:
        """Whether the best depth is surely better than what enters the lowest layer, or depth 0 is best itself."""
        gain, error = self.over_bottom[self.best]
        return self.best == 0 or gain > KNOWS * error

    @property
    def layers(self) -> int:
        """Of the model."""
        return len(self.errors) - 1

    @property
    def frozen(self) -> int:
        """Layers to freeze, from the input: those below the best depth, yet never the highest, which the task may bend.

        Where layers are dropped, the one that ends at the best depth trains too, unless it is the lowest. 0 where no
        depth surely knows more than the embeddings do: what the layers were trained for is not this.
        """
        gain, error = self.over_bottom[self.best]
        if not gain > KNOWS * error:
            return 0
        return max(1, self.best - 1) if self._falls else min(self.best, self.layers - 1)

    @property
    def kept(self) -> int:
        """Layers to keep, from the input; those above are dropped.

        All, unless what leaves the highest layer surely knows less than the best depth does; then one above the best.
        """
        return min(self.best + 1, self.layers) if self.frozen and self._falls else self.layers

    @property
    def _falls(self) -> bool:
        gain, error = self.over_top[self.best]
        return gain > SURE * error

    def __str__(self) -> str:
        lines = [f"leave-one-out error of linear probes on {self.examples:,} examples, by depth:"]
        for depth, (mean, (gain, error)) in enumerate(zip(self.errors, self.over_bottom, strict=True)):
            mark = " best" if depth == self.best else ""
            above, spread = self.over_top[depth]
            lines.append(
                f"  {depth:>3} {mean:.4f}  {gain:+.4f} ± {KNOWS * error:.4f} against depth 0"
                f"  {above:+.4f} ± {SURE * spread:.4f} against depth {self.layers}{mark}"
            )
        if self.frozen:
            drop = f", drop the {self.layers - self.kept} highest" if self.kept < self.layers else ""
            lines.append(f"freeze the {self.frozen} lowest of {self.layers} layers{drop}")
        else:
            lines.append(
                f"freeze none of {self.layers} layers: no depth surely knows more than what enters the lowest one"
            )
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
    means = tuple(float(one.double().mean()) for one in errors)
    best = int(torch.tensor(means).argmin())
    return Depths(means, _over(errors, errors[0]), _over(errors, errors[-1]), best, len(errors[0]))


def _over(errors: Sequence[Tensor], other: Tensor) -> tuple[tuple[float, float], ...]:
    return tuple(paired(other, one) for one in errors)


def paired(one: Tensor, other: Tensor) -> tuple[float, float]:
    """By how much the second is smaller than the first, example by example, and the standard error of that.

    Args:
        one: float ``[n]``, a loss or an error of each example.
        other: the same examples' under something else.

    >>> paired(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.5]))
    (0.5, 0.0)
    """
    gains = one.double() - other.double()
    return float(gains.mean()), float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
