"""What every test here starts from: a small net, its data, and the loop that a user writes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.handle import Handle
from realloc.methods.method import Method

TOTAL = 60


def net(sizes: tuple[int, ...] = (12, 24, 16, 4), seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def batch(step: int, rows: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 12, generator=torch.Generator().manual_seed(1000 + step), dtype=torch.float64).to(dtype)
    return x, x[:, :4].argmax(1)


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x, y = batch(step, dtype=dtype)
    return nn.functional.cross_entropy(model(x), y)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    first: int,
    last: int,
    watch: Callable[[int], Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        loss_of(model, step, dtype).backward()
        optimizer.step()
        if watch is not None:
            watch(step)


def attached(
    method: Method | None = None, *, model: nn.Module | None = None, every: int = 4, seed: int = 0, lr: float = 1e-2,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, total: int = TOTAL, **settings: Any,
) -> tuple[nn.Module, torch.optim.Optimizer, Handle]:  # fmt: skip
    model = net() if model is None else model
    made = optimizer(model.parameters(), lr=lr, **settings)
    method = methods.rigl(density=0.2) if method is None else method
    schedule = realloc.every(every, until=1.0, total=total)
    return model, made, realloc.attach(model, made, method, schedule=schedule, seed=seed)


def masks(handle: Handle) -> dict[str, Tensor]:
    return {name: handle.mask(name).clone() for name in handle.sites}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def intact(handle: Handle) -> None:
    assert handle.held == sum(int(handle.mask(n).sum()) for n in handle.sites)
    assert handle.held + handle.parked == handle.budget


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Dense, detached, by name."""
    return {n: p.detach().clone() for n, p in realloc.export.dense(model).named_parameters()}


def hooks(model: nn.Module) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
             "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")  # fmt: skip
    return sum(len(getattr(m, name)) for m in model.modules() for name in names)
