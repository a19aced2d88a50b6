"""A small model over ids, its data, and dense training of the same model beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import realloc
from realloc import methods

WORDS, WIDTH = 60, 6
Made = tuple[nn.Sequential, torch.optim.Optimizer, realloc.RowHandle]


class Mean(nn.Module):
    """Over the second last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-2)


def net(words: int = WORDS, padding: int | None = None, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Embedding(words, WIDTH, padding_idx=padding), Mean(), nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).to(dtype)


def batch(number: int, words: int = 30, first: int = 0) -> tuple[Tensor, Tensor]:
    """Ids of ``words`` different ones, from a window that wanders over the vocabulary."""
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(0, words, (8, 4), generator=draw) + first + number % 7
    return ids, torch.randint(0, 3, (8,), generator=draw)


def loss_of(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids), labels)


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, **more: Any) -> float:
    optimizer.zero_grad()
    loss = loss_of(model, *batch(number, **more))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)


def made(
    rows: int = 50, *, optimizer: Callable[[Any], torch.optim.Optimizer] = adamw, model: nn.Sequential | None = None,
    record: Any = None,
) -> Made:  # fmt: skip
    model = net() if model is None else model
    its = optimizer(model.parameters())
    return model, its, realloc.attach(model, its, methods.touched_rows(rows), record=record)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have equal weights, as a plain model would load them."""
    mine, theirs = realloc.export.dense(one).state_dict(), realloc.export.dense(other).state_dict()
    return [*mine] == [*theirs] and all(torch.equal(mine[key], theirs[key]) for key in mine)
