"""The toy of the rank tests, and plain references written without the library."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import realloc
from realloc.handle import Handle
from realloc.methods.rank_method import RankMethod

DOUBLE = torch.float64


class Plain(nn.Module):
    """`nn.Linear` with LoRA of the same values, as anyone would write it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = weight.detach(), None if bias is None else bias.detach(), scale
        self.a, self.b = nn.Parameter(a.detach().clone()), nn.Parameter(b.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias) + self.scale * (x @ self.a.t()) @ self.b


def net(dtype: torch.dtype = DOUBLE, sizes: tuple[int, ...] = (6, 10, 14, 4), bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after, bias=bias), nn.Tanh()]
    return nn.Sequential(*parts[:-1]).to(dtype)


def batch(step: int, dtype: torch.dtype = DOUBLE, rows: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(step), dtype=DOUBLE).to(dtype)
    return x, x[:, :4] * x[:, 2:]


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, scale: float = 1.0) -> float:
    optimizer.zero_grad()
    dtype = [*model.parameters()][-1].dtype
    x, y = batch(number, dtype)
    loss = scale * (model(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def made(
    method: RankMethod, *, model: nn.Module | None = None, gap: int = 4, total: int = 40, seed: int = 0,
    optimizer: Any = torch.optim.AdamW, lr: float = 1e-2, record: Any = None,
    before_move: Any = None, **settings: Any,
) -> tuple[nn.Module, torch.optim.Optimizer, Handle]:  # fmt: skip
    model = net() if model is None else model
    realloc.prepare(model, method, seed=seed)
    opt = optimizer(trainable(model), lr=lr, **settings)
    if before_move is not None:  # hooks run in the order they came: this one after the update, before the move
        opt.register_step_post_hook(lambda *_: before_move(model))
    handle = realloc.attach(model, opt, method, schedule=realloc.every(gap, total=total), seed=seed, record=record)
    return model, opt, handle


class Events(list):
    """A record that keeps its lines."""

    def decision(self, event: dict[str, Any]) -> None:
        self.append(event)
