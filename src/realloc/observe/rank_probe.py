"""What is measured of a layer before training, and what a method that chooses ranks then makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from realloc.allocate.afford import afford, level
from realloc.errors import ConfigError
from realloc.pool.ranks import new_rows


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
    """The ranks of each layer, and for some the rows of A ``[r, in]`` and of B ``[r, out]`` that they start with."""

    ranks: tuple[int, ...]
    rows: Mapping[str, Tensor]
    rows_b: Mapping[str, Tensor] = field(default_factory=dict)  # beside rows of A only; else B starts at zero


@final
@dataclass(frozen=True)
class RankProbe:
    """How ranks are chosen before training: what it needs, and a pure function of that, of a budget and of a seed."""

    name: str
    needs: Literal["input", "gradient"]
    choose: Callable[[Sequence[Probed], int, int], Allotted]  # (layers, parameters, seed)


def explained_variance(layers: Sequence[Probed], budget: int, seed: int) -> Allotted:
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


def weight_times_gradient(
    layers: Sequence[Probed], budget: int, seed: int, *, least: int, gamma: float, scale: float
) -> Allotted:
    """GoRA's rule: parameters in proportion to the mean ``|W G|`` of each layer, with at least ``least`` ranks each.

    Where ``gamma`` is not 0, B starts at the gradient (`compressed`).
    """
    worth = []
    for layer in layers:
        known = layer.gradient
        worth.append(0.0 if known is None else float((layer.weight * known).abs().mean()) / layer.cost)
    if not sum(worth) > 0:
        raise ConfigError("no layer has a gradient in these batches; is the loss that of this model?")
    costs = [layer.cost for layer in layers]
    floor = [min(least, layer.cap) for layer in layers]
    needed = sum(n * cost for n, cost in zip(floor, costs, strict=True))
    if budget < needed:
        raise ConfigError(
            f"budget is {budget:,} parameters, and least={least} ranks in each of {len(layers)} layers take "
            f"{needed:,}; raise the budget, or lower least"
        )
    ranks = level(worth, costs, budget, floor, [layer.cap for layer in layers])
    rows, rows_b = {}, {}
    for layer, rank in zip(layers, ranks, strict=True) if gamma else ():
        if rank and layer.gradient is not None:
            a = new_rows(rank, layer.shape[1], seed, layer.name, 0)
            rows[layer.name], rows_b[layer.name] = a, compressed(a, layer.gradient, gamma, scale)
    return Allotted(ranks, rows, rows_b)


def compressed(a: Tensor, gradient: Tensor, gamma: float, scale: float) -> Tensor:
    """B ``[r, out]`` with ``scale * B'A = -gamma * sqrt(in / r) * G P``, P the projection on the rows of A.

    So the weight takes a step of plain descent as far as A can say it: B is the gradient times A's pseudo-inverse. A
    random A keeps ``sqrt(r / in)`` of G's norm on average, hence the step's norm is about ``gamma`` times G's, whatever
    r is. GoRA: 2502.12171.

    Args:
        a: ``[r, in]``.
        gradient: G ``[out, in]``.
        gamma: norm of the step over that of the gradient.
        scale: factor of the ranks' part.

    >>> compressed(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]), gamma=1.0, scale=1.0)
    tensor([[-2.1213]], dtype=torch.float64)
    """
    step = gamma * math.sqrt(a.shape[1] / a.shape[0]) / scale
    found: Tensor = (gradient.cpu().double() @ torch.linalg.pinv(a.double())).t().mul(-step)
    return found
