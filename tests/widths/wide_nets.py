"""What every test of widths starts from: small nets, their data, a loop as a user writes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import realloc
import realloc.engine
from realloc.allocate.width_costs import Axis, Member
from realloc.errors import ReallocWarning
from realloc.handle import Handle
from realloc.methods.width_method import WidthMethod
from realloc.plan import Plan

DOUBLE = torch.float64
IMAGE = (2, 6, 6)


def mlp(
    *sizes: int, dtype: torch.dtype = DOUBLE, act: Callable[[], nn.Module] = nn.ReLU, norm: bool = False,
    bias: bool = True, seed: int = 0,
) -> nn.Sequential:  # fmt: skip
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=bias), *([nn.BatchNorm1d(b)] if norm else []), act()]
    return nn.Sequential(*layers[: -2 if norm else -1]).to(dtype)


def cnn(
    one: int = 4, two: int = 5, hidden: int = 6, *, dtype: torch.dtype = DOUBLE, bias: bool = False, seed: int = 0
) -> nn.Sequential:
    """Two convolutions with a norm each, the second one flattened 2 x 2 into a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, one, 3, padding=1, bias=bias), nn.BatchNorm2d(one), nn.ReLU(),
        nn.Conv2d(one, two, 3, stride=2, bias=bias), nn.BatchNorm2d(two), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * two, hidden), nn.ReLU(), nn.Linear(hidden, 3),
    ).to(dtype)  # fmt: skip


def data(step: int, *shape: int, rows: int = 16, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1000 + step), dtype=DOUBLE).to(dtype)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    flat = x.flatten(1)
    return (y - flat[:, : y.shape[1]] * flat[:, -y.shape[1] :]).square().mean()


def output(model: nn.Module, x: Tensor, training: bool) -> Tensor:
    """What a model gives out in a mode; it trains on in the other."""
    model.train(training)
    with torch.no_grad():
        found = model(x)
    model.train()
    return found


def shape_of(model: nn.Module) -> tuple[int, ...]:
    first = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    return (first.in_features,) if isinstance(first, nn.Linear) else IMAGE


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, rows: int = 16) -> float:
    optimizer.zero_grad()
    dtype = next(p.dtype for p in model.parameters())
    loss = loss_of(model, data(number, *shape_of(model), rows=rows, dtype=dtype))
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def attached(
    method: WidthMethod, model: nn.Module, *, gap: int = 2, total: int = 40, seed: int = 0, lr: float = 1e-2,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, before_move: Callable[[], Any] | None = None,
    record: Any = None, **settings: Any,
) -> tuple[torch.optim.Optimizer, Handle]:  # fmt: skip
    """``before_move`` runs after each update, before the move."""
    made = optimizer(model.parameters(), lr=lr, **settings)
    if before_move is not None:
        made.register_step_post_hook(lambda *_: before_move())
    schedule = realloc.every(gap, total=total)
    return made, realloc.attach(model, made, method, schedule=schedule, seed=seed, record=record)


def quiet() -> Any:
    """Realloc's own warnings are told elsewhere."""
    context = warnings.catch_warnings()
    context.__enter__()
    warnings.simplefilter("ignore", ReallocWarning)
    return context


def widths(handle: Handle) -> dict[str, int]:
    return handle._holdings.units


def moved_parameters(model: nn.Module, names: Sequence[str]) -> int:
    """Entries that the named parameters of a plain model have."""
    return sum(model.get_parameter(name).numel() for name in names)


class Events(list):
    """A record that keeps its lines."""

    def decision(self, event: dict[str, Any]) -> None:
        self.append(event)


def noted_moves(monkeypatch: Any) -> list[tuple[Plan, dict[str, Tensor]]]:
    """Every plan that is applied from now on, and for each group which unit each of its units was before."""
    seen: list[tuple[Plan, dict[str, Tensor]]] = []
    plain = realloc.engine.apply

    def noting(plan: Plan, entries: Any, target: Any) -> None:
        seen.append((plan, {name: entry.source.clone() for name, entry in entries.items()}))
        plain(plan, entries, target)

    monkeypatch.setattr("realloc.engine.apply", noting)
    return seen


def along(axis: Axis, groups: Sequence[str], sources: dict[str, Tensor]) -> Tensor:
    """Which entry along an axis each entry was before, one by one; -1: new."""
    if axis.group is None:
        return torch.arange(axis.block)
    found = []
    for old in sources[groups[axis.group]].tolist():
        found += [old * axis.block + i if old >= 0 else -1 for i in range(axis.block)]
    return torch.tensor(found)


def carried(old: Tensor, member: Member, groups: Sequence[str], sources: dict[str, Tensor], new: Tensor) -> Tensor:
    """A tensor of a parameter's shape after a move, entry by entry: what stays from ``old``, what came from ``new``."""
    rows = along(member.rows, groups, sources)
    found = new.clone()
    if member.columns is None:
        for i, a in enumerate(rows.tolist()):
            if a >= 0:
                found[i] = old[a]
        return found
    columns = along(member.columns, groups, sources)
    for i, a in enumerate(rows.tolist()):
        for j, b in enumerate(columns.tolist()):
            if a >= 0 and b >= 0:
                found[i, j] = old[a, b]
    return found


def median(values: Tensor) -> float:
    """Of those that are not zero; 0 where all are."""
    known = values.flatten()[values.flatten() != 0]
    return float(known.median()) if known.numel() else 0.0


SECOND = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf"}  # these start at the median


class Beside:
    """Plain parameters under a plain optimizer, beside the pools of an attached model."""

    def __init__(self, handle: Any, make: Any, lr: float) -> None:
        self.handle = handle
        self.members = handle._holdings.wide[0].space.members
        self.groups = handle._holdings.wide[0].space.groups
        self.plain = {m.name: nn.Parameter(self.now(m.name).clone()) for m in self.members}
        self.optimizer = make([*self.plain.values()], lr=lr)
        idle = nn.Parameter(torch.zeros(2, dtype=DOUBLE))
        fresh = make([idle], lr=lr)
        idle.grad = torch.zeros_like(idle)
        fresh.step()
        self.fresh = {key: float(v[0]) for key, v in fresh.state[idle].items() if torch.is_tensor(v) and v.ndim}

    def site(self, name: str) -> Any:
        return self.handle.sites[name]

    def now(self, name: str) -> Tensor:
        site = self.site(name)
        return site.of(site.pool.parameter.detach())

    def state(self, optimizer: torch.optim.Optimizer, name: str) -> dict[str, Tensor]:
        site = self.site(name)
        whole = optimizer.state[site.pool.parameter]
        return {key: site.of(value) for key, value in whole.items() if value.shape == site.pool.parameter.shape}

    def step(self) -> None:
        """The same step on the plain parameters; to be called after the backward."""
        for name, parameter in self.plain.items():
            site = self.site(name)
            parameter.grad = site.of(site.pool.parameter.grad).clone()
        self.optimizer.step()

    def move(self, sources: dict[str, Tensor]) -> int:
        """The move, by hand. Returns how many entries came."""
        came = 0
        for member in self.members:
            parameter = self.plain[member.name]
            new = self.now(member.name)
            old, state = parameter.data, self.optimizer.state[parameter]
            parameter.data = carried(old, member, self.groups, sources, new)
            came += int(carried(torch.zeros_like(old), member, self.groups, sources, torch.ones_like(new)).sum())
            for key, value in state.items():
                if torch.is_tensor(value) and value.shape == old.shape:
                    level = median(value) if key in SECOND else self.fresh[key]
                    state[key] = carried(value, member, self.groups, sources, torch.full_like(new, level))
            parameter.grad = None
        return came

    def same(self, optimizer: torch.optim.Optimizer, skip: str = "") -> None:
        for name, parameter in self.plain.items():
            if not (skip and name.endswith(skip)):
                assert torch.allclose(self.now(name), parameter, rtol=0, atol=1e-13), name
            mine = self.state(optimizer, name)
            for key, value in self.optimizer.state[parameter].items():
                if torch.is_tensor(value) and value.ndim:
                    assert torch.allclose(mine[key], value, rtol=1e-12, atol=1e-16), f"{name}: {key}"
