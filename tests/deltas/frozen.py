"""The toy of the delta tests, and SpIEL written out over dense deltas with masks, without the library."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import realloc
from realloc.handle import Handle
from realloc.methods.delta_method import DeltaMethod

DOUBLE = torch.float64


def net(dtype: torch.dtype = DOUBLE, sizes: tuple[int, ...] = (6, 10, 14, 4), bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after, bias=bias), nn.Tanh()]
    return nn.Sequential(*parts[:-1]).to(dtype)


def batch(step: int, dtype: torch.dtype = DOUBLE, rows: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(step), dtype=DOUBLE).to(dtype)
    return x, x[:, :4] * x[:, 2:]


def loss_of(model: nn.Module, number: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    x, y = batch(number, dtype)
    return (model(x) - y).square().mean()


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, scale: float = 1.0) -> float:
    optimizer.zero_grad()
    loss = scale * loss_of(model, number, [*model.parameters()][-1].dtype)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def made(
    method: DeltaMethod, *, model: nn.Module | None = None, gap: int = 4, total: int = 40, seed: int = 0,
    record: Any = None, before_move: Any = None, **settings: Any,
) -> tuple[nn.Module, torch.optim.Optimizer, Handle]:  # fmt: skip
    model = net() if model is None else model
    realloc.prepare(model, method, seed=seed)
    opt = torch.optim.AdamW(trainable(model), **{"lr": 1e-2, **settings})
    if before_move is not None:  # hooks run in the order they came: this one after the update, before the move
        opt.register_step_post_hook(lambda *_: before_move(model))
    handle = realloc.attach(model, opt, method, schedule=realloc.every(gap, total=total), seed=seed, record=record)
    return model, opt, handle


def dense_of(site: Any, flat: Tensor) -> Tensor:
    """A pool-shaped tensor as the dense matrix of one site."""
    first, last = site.pool.bounds(site.index)
    out = torch.zeros(site.capacity, dtype=flat.dtype)
    out[site.places()] = flat.detach()[first:last, 0]
    return out.view(site.shape)


class Events(list):
    """A record that keeps its lines."""

    def decision(self, event: dict[str, Any]) -> None:
        self.append(event)


class PlainLinear(nn.Module):
    """`nn.Linear` with a dense delta that a mask holds down."""

    def __init__(self, linear: nn.Linear, held: Tensor) -> None:
        super().__init__()
        self.weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.held = held.clone()
        self.delta = nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.delta, self.bias)


class Plain:
    """SpIEL with one budget for all layers, as anyone would write it: dense gradients, global sorts."""

    def __init__(
        self, model: nn.Sequential, masks: dict[int, Tensor], *, window: int, gap: int, total: int, drop: float
    ):
        self.layers = [PlainLinear(model[i], mask) for i, mask in masks.items()]
        for i, layer in zip(masks, self.layers, strict=True):
            model[i] = layer
        self.model, self.window, self.gap, self.total, self.drop = model, window, gap, total, drop
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
        held = sum(int(layer.held.sum()) for layer in self.layers)
        self.most = min(held, sum(layer.held.numel() for layer in self.layers) - held)
        self.candidates: list[int] = []
        self.seen: list[Tensor] = []
        self.jumps: list[float] = []

    def flat(self, name: str) -> Tensor:
        return torch.cat([getattr(layer, name).detach().flatten() for layer in self.layers])

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model, number).backward()
        dense = torch.cat([layer.delta.grad.flatten() for layer in self.layers])
        for layer in self.layers:
            layer.delta.grad *= layer.held
        self.optimizer.step()
        step = number + 1
        due = -(-step // self.gap) * self.gap
        if due <= self.total and due - step < self.window:
            if not self.candidates:
                size, free = dense.abs(), ~self.flat("held")
                order = sorted(free.nonzero().flatten().tolist(), key=lambda p: (-float(size[p]), p))
                self.candidates = sorted(order[: self.most])
            self.seen.append(dense[self.candidates])
            if step == due:
                self.move(step)

    def move(self, step: int) -> None:
        held, delta = self.flat("held"), self.flat("delta")
        count = min(math.floor(self.drop * (1 - step / self.total) * int(held.sum())), len(self.candidates))
        order = sorted(held.nonzero().flatten().tolist(), key=lambda p: (-float(delta[p].abs()), p))
        gone = order[len(order) - count :]
        mean, square = torch.stack(self.seen).mean(0), torch.stack(self.seen).square().mean(0)
        ranked = sorted(range(len(self.candidates)), key=lambda i: (-float(mean[i].abs()), i))[:count]
        first = 0
        for layer in self.layers:
            size, state = layer.held.numel(), self.optimizer.state[layer.delta]
            mine = [p - first for p in gone if first <= p < first + size]
            self.jumps.append(float(layer.delta.detach().flatten()[mine].norm()))
            for tensor in (layer.delta.data, state["exp_avg"], state["exp_avg_sq"]):
                tensor.view(-1)[mine] = 0.0
            layer.held.view(-1)[mine] = False
            for i in ranked:
                place = self.candidates[i] - first
                if 0 <= place < size:
                    layer.held.view(-1)[place] = True
                    state["exp_avg_sq"].view(-1)[place] = square[i] * (1 - 0.999**step)
            first += size
        self.candidates, self.seen = [], []
