"""Putting a pool into an optimizer that already exists, and taking it out again. Groups are changed in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True, eq=False)
class Part:
    """One dense weight that went into a pool: where its held weights lay, and which slots they took."""

    name: str
    parameter: nn.Parameter
    elements: Tensor  # int64 flat positions in the dense weight, in slot order
    first: int  # its first slot
    shape: tuple[int, ...]


def inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself, below wrappers such as accelerate's."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer  # type: ignore[no-any-return]


def group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> int | None:
    """Index of the group that holds a parameter, by identity."""
    for index, group in enumerate(optimizer.param_groups):
        if any(p is parameter for p in group["params"]):
            return index
    return None


def replace(
    optimizer: torch.optim.Optimizer, olds: Sequence[tuple[str, nn.Parameter]], news: Sequence[tuple[str, nn.Parameter]]
) -> None:
    """Put ``news`` at the place of the first of ``olds`` in its group and drop the other olds.

    Never adds or removes a group: a scheduler made before keeps one rate for each.
    """
    gone = {id(p) for _, p in olds}
    for group in optimizer.param_groups:
        params: list[Tensor] = group["params"]
        hits = [i for i, p in enumerate(params) if id(p) in gone]
        if not hits:
            continue
        names = group.get("param_names")
        for i in reversed(hits):
            del params[i]
            if names is not None:
                del names[i]
        params[hits[0] : hits[0]] = [p for _, p in news]
        if names is not None:
            names[hits[0] : hits[0]] = [n for n, _ in news]
        return


def sort_groups(optimizer: torch.optim.Optimizer, wanted: Sequence[Tensor]) -> None:
    """Bring the parameters of every group into the order of ``wanted``: an optimizer's state is saved by position.

    What is not wanted stays where it is.
    """
    position = {id(p): i for i, p in enumerate(wanted)}
    for group in optimizer.param_groups:
        params = group["params"]
        known = [i for i, p in enumerate(params) if id(p) in position]
        sorted_ = iter(sorted(known, key=lambda i: position[id(params[i])]))
        order = [next(sorted_) if id(p) in position else i for i, p in enumerate(params)]
        for key in ("params", "param_names"):
            if group.get(key) is not None:
                group[key][:] = [group[key][i] for i in order]


def carry_in(
    optimizer: torch.optim.Optimizer, parts: Sequence[Part], pool: nn.Parameter, fresh: dict[str, float]
) -> None:
    """Gather the state of the dense weights into the pool's, slot by slot; drop theirs."""
    states = [(part, optimizer.state.pop(part.parameter, None)) for part in parts]
    known = [state for _, state in states if state]
    if not known:
        return
    merged: dict[str, Any] = {}
    for key, sample in known[0].items():
        if torch.is_tensor(sample) and sample.ndim:
            merged[key] = torch.full_like(pool, fresh.get(key, 0.0), dtype=sample.dtype)
        elif torch.is_tensor(sample):
            merged[key] = max((s[key] for s in known), key=float).clone()  # one step count serves the whole pool
        else:
            merged[key] = sample
    for part, state in states:
        last = part.first + part.elements.numel()
        for key, value in (state or {}).items():
            if torch.is_tensor(value) and value.ndim:
                merged[key][part.first : last, 0] = value.reshape(-1)[part.elements]
    optimizer.state[pool] = merged


def carry_out(
    optimizer: torch.optim.Optimizer, parts: Sequence[Part], pool: nn.Parameter, fresh: dict[str, float]
) -> None:
    """The way back: give every dense weight its own state; what was not held starts fresh."""
    state = optimizer.state.pop(pool, None)
    if not state:
        return
    for part in parts:
        own: dict[str, Any] = {}
        last = part.first + part.elements.numel()
        for key, value in state.items():
            if torch.is_tensor(value) and value.shape == pool.shape:
                dense = torch.full(
                    (part.parameter.numel(),), fresh.get(key, 0.0), dtype=value.dtype, device=value.device
                )
                dense[part.elements] = value[part.first : last, 0]
                own[key] = dense.view(part.shape)
            else:
                own[key] = value.clone() if torch.is_tensor(value) else value
        optimizer.state[part.parameter] = own
