"""What is measured of a layer before training, and what a method that chooses ranks then makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from realloc.allocate.afford import afford, level
from realloc.errors import ConfigError


@final
@dataclass(frozen=True, eq=False)
class Probed:
    """One layer after a few batches."""

    name: str  # of its weight
    shape: tuple[int, int]  # (out, in)
    cap: int  # most ranks it may hold
    weight: Tensor  # [out, in]
    spread: Tensor | None = None  # [in, in], covariance of its input, float64; None: it was never called
    gradient: Tensor | None = None  # [out, in], mean gradient of the loss; None: it has none

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return sum(self.shape)


@final
@dataclass(frozen=True, eq=False)
class Allotted:
    """The ranks of each layer, and for some the rows of A ``[r, in]`` that they start with."""

    ranks: tuple[int, ...]
    rows: dict[str, Tensor]


@final
@dataclass(frozen=True)
class RankProbe:
    """How ranks are chosen before training: what it needs, and a pure function of that and a budget in parameters."""

    name: str
    needs: Literal["input", "gradient"]
    choose: Callable[[Sequence[Probed], int], Allotted]


def explained_variance(layers: Sequence[Probed], budget: int) -> Allotted:
    """EVA's rule: ranks go to the components that explain most of their layer's input, per parameter."""
    ratios: list[list[float]] = []
    rows: list[Tensor] = []
    for layer in layers:
        if layer.spread is None:
            ratios.append([])
            rows.append(layer.weight.new_zeros(0, layer.shape[1]))
            continue
        values, vectors = torch.linalg.eigh(layer.spread)
        values, vectors = values.flip(0)[: layer.cap].clamp(min=0.0), vectors.flip(1)[:, : layer.cap]
        total = float(layer.spread.diagonal().sum())
        ratios.append([float(v) / total / layer.cost if total > 0 else 0.0 for v in values])
        peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        rows.append((vectors * peak.sign()).t().contiguous())  # an eigenvector's sign is free: this one is a rule
    ranks = afford(ratios, [layer.cost for layer in layers], budget)
    found = {layer.name: mine[:n] for layer, mine, n in zip(layers, rows, ranks, strict=True) if n}
    return Allotted(ranks, found)


def weight_times_gradient(layers: Sequence[Probed], budget: int, least: int) -> Allotted:
    """GoRA's rule: parameters in proportion to the mean ``|W G|`` of each layer, with at least ``least`` ranks each."""
    worth = []
    for layer in layers:
        known = layer.gradient
        worth.append(0.0 if known is None else float((layer.weight * known).abs().mean()) / layer.cost)
    if not sum(worth) > 0:
        raise ConfigError("no layer has a gradient in these batches; is the loss that of this model?")
    costs = [layer.cost for layer in layers]
    floor = [min(least, layer.cap) for layer in layers]
    return Allotted(level(worth, costs, budget, floor, [layer.cap for layer in layers]), {})
