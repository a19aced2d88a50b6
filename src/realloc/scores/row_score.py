"""The score of an id that could own a row: what one step adds to it, and what an own row is worth at a decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from realloc.errors import StateError, plain


@final
@dataclass(frozen=True, eq=False)
class RowStep:
    """The ids of one step of all ranks, each once; gradients are those of the mean loss, in units of ``scale``."""

    counts: Tensor  # float64 [n]: how often each came
    norms: Tensor  # float64 [n]: the norms of its occurrences' gradients, summed
    sums: Tensor  # float64 [n, dim]: its gradient, summed; [n, 0] for a score that does not need it

    def __len__(self) -> int:
        return self.counts.numel()

    @cached_property
    def occurrences(self) -> float:
        """All of them together."""
        return float(self.counts.sum())

    @cached_property
    def scale(self) -> float:
        """What makes the norms of a step add up to its occurrences; 0 where there is no gradient.

        So an early step with large gradients, or a loss that a scaler multiplies, weighs no more than another.
        """
        total = float(self.norms.sum())
        return self.occurrences / total if total > 0 else 0.0


@final
@dataclass(frozen=True, eq=False)
class RowsKnown:
    """What the sketch knows of its ids at a decision."""

    scores: Tensor  # float32 [n]: what the steps added since the sketch knows the id, decayed
    sums: Tensor  # float32 [n, p]: each id's gradient along p directions, decayed
    mates: Tensor  # float32 [n, p]: the same of the shared row of each: of all ids that read it
    owns: Tensor  # bool [n]: whether it owns a row; its gradient is not among its mates' then
    generator: torch.Generator  # of this decision

    def __len__(self) -> int:
        return self.scores.numel()


def _noted(known: RowsKnown) -> Tensor:
    return known.scores.double()


@final
@dataclass(frozen=True)
class RowScore:
    """One way to rank ids.

    Args:
        name: as users call it.
        gain: what a step adds to the score of each of its ids, float64 ``[n]``, 0 and more. It also decides who stays
            in the sketch.
        worth: what an own row is worth to each id at a decision, float64 ``[n]``; the score itself if left out.
        needs_directions: whether it reads ``sums`` and ``mates``.
        needs_sums: whether ``gain`` reads a step's ``sums``, which take longer than its norms.
        reference: arXiv number of its paper.
    """

    name: str
    gain: Callable[[RowStep], Tensor]
    worth: Callable[[RowsKnown], Tensor] = _noted
    needs_directions: bool = False
    needs_sums: bool = True
    reference: str = ""

    def gained(self, step: RowStep) -> Tensor:
        """What a step adds, float32 ``[n]``, checked: the sketch is written by a kernel that trusts it.

        Raises:
            StateError: ``gain`` gave something else, or a number below 0; NaN and Inf among them.

        >>> step = RowStep(torch.ones(2), torch.ones(2), torch.ones(2, 0))
        >>> RowScore("mine", lambda step: step.norms).gained(step).tolist()
        [1.0, 1.0]
        """
        found = self.gain(step)
        told = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        if not isinstance(found, Tensor) or found.shape != (len(step),) or found.is_complex():
            raise StateError(
                f"score {plain(self.name)!r} gave {told} for {len(step)} ids; its gain is one number for each"
            )
        found = found.detach().to("cpu", torch.float32).contiguous()
        if not bool((found >= 0).all()) or not bool(found.isfinite().all()):
            raise StateError(f"score {plain(self.name)!r} gave a gain that is below 0, NaN or Inf; it is 0 and more")
        return found
