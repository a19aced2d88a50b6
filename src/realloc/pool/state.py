"""Optimizer state of slots: it follows its slot at a move, and a new slot starts by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import torch
from torch import Tensor, nn

from realloc.kernels.gather import Slots, gather_slots

Moments = Literal["zero", "median", "seed"]
SPACED: Final = 4096  # slots that a median looks at: enough, and it is taken at every move
GOLDEN: Final = (5**0.5 - 1) / 2
SECOND_MOMENTS = frozenset({"exp_avg_sq", "square_avg", "sum", "max_exp_avg_sq", "exp_inf"})

CORRECTED = frozenset({"exp_avg_sq", "max_exp_avg_sq"})  # of them, those that are divided by 1 - beta2^t


@final
@dataclass(frozen=True, eq=False)
class Newcomers:
    """The slots of one site after a move, as far as it concerns those that are new."""

    held: Tensor  # int64, slots that the site had before, as `spread` takes them
    slots: int  # how many it has now
    new: Tensor | None = None  # int64, which of them are new, where their own gradient counts
    gradient: Tensor | None = None  # that gradient, [units, size]


def slotwise(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state tensors that hold one number for each slot, by key."""
    state = optimizer.state.get(parameter, {})
    return {k: v for k, v in state.items() if torch.is_tensor(v) and v.shape == parameter.shape and v.ndim > 0}


def weight_so_far(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> float:
    """``1 - beta2^t``, what Adam and its kin divide second moments by after t steps; 1 for other optimizers."""
    step = optimizer.state.get(parameter, {}).get("step")
    betas = next((g.get("betas") for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)
    return 1.0 if step is None or betas is None else 1.0 - float(betas[1]) ** float(step)


def gather_pool(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    source: Tensor,
    starts: dict[str, Tensor | float],
    values: Tensor | float = 0.0,
) -> None:
    """Apply one move to a pool: its values, gradient and state. ``source`` int64 [n]: the old slot, -1 where new.

    ``starts``: what the state of a new slot starts with, by key: a number, or one for each slot; ``values``: its value.
    """
    moving: list[Slots] = [(parameter.detach(), values)]
    if parameter.grad is not None:
        moving.append((parameter.grad, 0.0))
    moving += [(tensor, starts.get(key, 0.0)) for key, tensor in slotwise(optimizer, parameter).items()]
    gather_slots(moving, source)


def spread(count: int) -> Tensor:
    """Which of so many slots a median looks at, int64, ascending: all, or `SPACED` of them, equal on all ranks.

    Multiples of the golden ratio lie evenly and have no period: a fixed stride would meet the same few columns of a
    weight in every row, and those may all be of inputs that are always zero.

    >>> spread(3).tolist(), len(spread(10**6)), len(torch.unique(spread(1024 * 784) % 784)) > 700
    ([0, 1, 2], 4096, True)
    """
    if count <= SPACED:
        return torch.arange(count)
    found: Tensor = torch.unique((torch.arange(SPACED, dtype=torch.float64).mul(GOLDEN).frac() * count).long())
    return found


def starts_of(
    rule: Moments,
    state: dict[str, Tensor],
    fresh: dict[str, float],
    newcomers: Sequence[Newcomers],
    weight: float = 1.0,
) -> dict[str, Tensor | float]:
    """Start values of slots, by key: a number, or one for each slot of the newcomers in order (old ones do not count).

    ``zero``: as a fresh optimizer would write them. ``median``: second moments start at the median over the
    site's held slots, or `SPACED` of them, without those that are zero: one that never had a gradient says nothing of
    how large gradients are. ``seed``: second moments start at the square of the candidate's own gradient (its absolute
    value for Adamax, which keeps a norm), times ``weight`` where the optimizer corrects for it, see `weight_so_far`.
    First moments always start fresh.
    """
    starts: dict[str, Tensor | float] = dict(fresh)
    if rule == "zero":
        return starts
    for key in SECOND_MOMENTS & state.keys():
        whole = state[key].new_full((sum(n.slots for n in newcomers),), fresh.get(key, 0.0))
        for site, level in zip(newcomers, torch.split(whole, [n.slots for n in newcomers]), strict=True):
            if rule == "median" and site.held.numel():
                known = state[key].reshape(-1)[site.held]
                known = known[known != 0]
                level.fill_(known.median() if known.numel() else 0.0)
            elif rule == "seed" and site.gradient is not None and site.new is not None:
                seed = site.gradient.flatten().to(state[key])
                square = seed.square() * weight if key in CORRECTED else seed.square()
                level[site.new] = seed.abs() if key == "exp_inf" else square
        starts[key] = whole
    return starts


def reset_masked(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    released: Tensor,
    acquired: Tensor,
    starts: dict[str, Tensor | float],
) -> None:
    """Let a masked parameter's state forget what lay at ``released``, and start what begins at ``acquired``."""
    for key, tensor in slotwise(optimizer, parameter).items():
        put(tensor, released, 0.0)
        put(tensor, acquired, starts.get(key, 0.0))


def put(dense: Tensor, elements: Tensor, value: Tensor | float) -> None:
    """Write at flat positions, in place, whatever the strides (a channels-last weight has no flat view)."""
    dense[torch.unravel_index(elements, dense.shape)] = value.to(dense) if isinstance(value, Tensor) else value


def restart(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Forget all the state of one parameter."""
    optimizer.state.pop(parameter, None)


def snapshot(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, first: int, last: int) -> dict[str, Any]:
    """Copy the values and state of slots ``first:last``."""
    kept = {key: value[first:last].clone() for key, value in slotwise(optimizer, parameter).items()}
    return {"": parameter.detach()[first:last].clone(), **kept}


def restore(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    first: int,
    kept: dict[str, Any],
    fresh: dict[str, float],
) -> None:
    """Put a snapshot back; state that the step has just created starts fresh there."""
    last = first + kept[""].shape[0]
    parameter.detach()[first:last] = kept[""]
    for key, value in slotwise(optimizer, parameter).items():
        value[first:last] = kept.get(key, fresh.get(key, 0.0))
