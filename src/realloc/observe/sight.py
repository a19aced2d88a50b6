"""What a method asked to see of the layers, gathered in the step in which a choice is due."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import nn

from realloc.observe.layers import GradientSums, squared_norms
from realloc.observe.plasticity import Plasticity
from realloc.observe.ranks import Ranks
from realloc.sites.blocks import Blocks


@final
class Sight:
    """One for each attached model. What a resume needs of it is in the model's buffers.

    Args:
        owner: the module that gets the buffers.
        blocks: its layers.
        needs: as in `LayerMethod`.
        ranks: that choose alike.
    """

    def __init__(self, owner: nn.Module, blocks: Blocks, needs: frozenset[str], ranks: Ranks) -> None:
        self.layers = blocks.trainable()
        self.ranks = ranks
        self.gradient: tuple[float, ...] | None = None
        self.near = False  # whether a choice is due after this step
        self.gradients = "gradient" in needs  # whether it looks at those of layers that do not train
        self.plasticity = Plasticity(owner, blocks.modules) if "plasticity" in needs else None
        self._sums = GradientSums(owner, self.layers) if "change" in needs else None
        self._missing: str | None = None

    def enter(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """The lowest layer that trains is called in training."""
        if self.near and self.plasticity is not None:
            self.plasticity.enter(args, kwargs)

    def measure(self, on: Sequence[int]) -> None:
        """After a backward, before the update."""
        if self._sums is not None:
            self._sums.add()
        if self.near and self.gradients:
            self.gradient = squared_norms(self.layers)
        if self.near and self.plasticity is not None and on:
            self._missing = self.plasticity.measure(min(on), self.ranks)

    def trouble(self) -> str | None:
        """Why a choice must wait; where one rank has a reason, all have one."""
        mine = self._trouble()
        if self.ranks.largest([int(mine is not None)])[0]:
            return mine or "another rank had nothing to choose by"
        return None

    def _trouble(self) -> str | None:
        if self.gradients:
            if self.gradient is None or not any(self.gradient):
                return "nothing was measured: no layer had a gradient (is this the model you train?)"
            if not all(map(math.isfinite, self.gradient)):
                return "a gradient is NaN or Inf"
        if self.plasticity is not None:
            value = self.plasticity.value
            if value is None:
                return self._missing or "nothing was measured: no layer trains"
            if not math.isfinite(value):
                return "the output of a layer is NaN or Inf"
        return None

    def change(self) -> tuple[float | None, ...] | None:
        """Relative change of each layer's summed gradient; a new interval begins."""
        return None if self._sums is None else self._sums.change()

    def test(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the plasticity down, with the highest rate of the groups that train layers."""
        if self.plasticity is not None:
            mine = {id(p) for layer in self.layers for p in layer}
            groups = [g for g in optimizer.param_groups if any(id(p) in mine for p in g["params"])]
            self.plasticity.add(max(float(group["lr"]) for group in groups))

    def settle(self, before: Sequence[int], after: Sequence[int]) -> None:
        """After a choice: look away."""
        self.gradient, self._missing = None, None
        if self.plasticity is not None:
            self.plasticity.settle(before, after)
