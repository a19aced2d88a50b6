"""Small nets in float64 with what each kind of method moves in them, and data that depend on the step alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from realloc.methods.hot_row_method import HotRowMethod
from realloc.methods.rate_method import RateMethod
from realloc.methods.row_method import RowMethod
from realloc.methods.width_method import WidthMethod
from realloc.nn.embedding import Embedding

IDS, DIM = 60, 8


@final
@dataclass(frozen=True, eq=False)
class World:
    """A model, and a batch of a step: what the model takes, and what it is to give."""

    model: nn.Module
    batch: Callable[[int], tuple[Tensor, Tensor]]


def world_of(method: Any) -> World:
    """A fresh one, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(method, HotRowMethod):
            return World(_over(Embedding(IDS, DIM, rows="60%", directions=8)), _ids)
        if isinstance(method, RowMethod):
            return World(_over(nn.Embedding(IDS, DIM)), _ids)
        parts: list[nn.Module] = []
        for _ in range(4):
            parts += [nn.Linear(12, 12), nn.ReLU()]
        return World(nn.Sequential(*parts, nn.Linear(12, 4)).double(), _numbers)


def in_short(method: Any) -> Any:
    """The same method, for a run of a few steps: no window or age longer than there is time for."""
    if isinstance(method, WidthMethod):
        return replace(method, mature=0, window=min(2, method.window))
    if isinstance(method, RateMethod):
        return replace(method, window=min(2, method.window))
    return method


def _over(table: nn.Module) -> nn.Sequential:
    return nn.Sequential(table, nn.Flatten(), nn.Linear(3 * DIM, 4)).double()


def _numbers(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x, x[:, :4] * x[:, 4:8]


def _ids(step: int) -> tuple[Tensor, Tensor]:
    """Three ids each, the first ones often."""
    draw = torch.Generator().manual_seed(step)
    ids = (torch.rand(16, 3, generator=draw, dtype=torch.float64) ** 3 * IDS).long()
    return ids, torch.stack([(ids % (2 + k)).double().sum(1) - k for k in range(4)], 1)
