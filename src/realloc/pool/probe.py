"""Does an optimizer treat every slot alone? Asked of the optimizer itself, not of a list of names.

A throwaway instance steps a tensor whole and in two parts. Unequal results, or state of another shape, mean that
slots depend on each other (Adafactor's factors, Muon's orthogonalisation, LAMB's norm), so they cannot be moved.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError

Group = dict[str, Any]
MASKED = 'Use masked storage instead: method.on(storage="masked"), or an elementwise optimizer such as AdamW or SGD'


def fresh_state(optimizer: torch.optim.Optimizer, group: Group, like: Tensor, remedy: str = MASKED) -> dict[str, float]:
    """What a fresh instance writes into the state of a slot at value zero with gradient zero, by key.

    Raises:
        ConfigError: the optimizer is not elementwise; it is named, with the remedy.
    """
    name = type(optimizer).__name__
    try:
        _compare_whole_and_parts(optimizer, group, like, remedy)
        slot = _parameter(torch.zeros(2, 1, dtype=like.dtype, device=like.device))
        twin = _twin(optimizer, group, [slot])
        slot.grad = torch.zeros_like(slot)
        twin.step()
        return {k: float(v.flatten()[0]) for k, v in twin.state[slot].items() if _is_slotwise(v, slot)}
    except ConfigError:
        raise
    except Exception as error:  # a foreign optimizer may raise anything; it becomes one refusal with its reason
        raise refusal(name, f"a trial step of it failed: {type(error).__name__}: {error}", remedy) from error


def sparse_state(optimizer: torch.optim.Optimizer, group: Group, like: Tensor, remedy: str) -> dict[str, float]:
    """What an optimizer writes of a row whose gradient is sparse and zero, by key.

    Raises:
        ConfigError: it takes no sparse gradient, or keeps one as its state (SGD with momentum): rows of that cannot
            be moved.
    """
    name = type(optimizer).__name__
    slot = _parameter(torch.zeros(2, 1, dtype=like.dtype, device=like.device))
    try:
        twin = _twin(optimizer, group, [slot])
        with warnings.catch_warnings(action="ignore"):  # what torch says of sparse tensors is not of this trial
            for _ in range(2):
                slot.grad = torch.sparse_coo_tensor(
                    torch.zeros(1, 1).long(), slot.detach()[:1], (2, 1), check_invariants=True
                )
                twin.step()
    except Exception as error:  # a foreign optimizer may raise anything; it becomes one refusal with its reason
        raise ConfigError(f"optimizer {name} cannot take sparse gradients: {error}. {remedy}") from error
    state = {k: v for k, v in twin.state[slot].items() if _is_slotwise(v, slot)}
    if any(v.is_sparse for v in state.values()):
        raise ConfigError(f"optimizer {name} keeps state that is sparse, whose rows cannot be moved. {remedy}")
    return {k: float(v.flatten()[0]) for k, v in state.items()}


def refusal(name: str, reason: str, remedy: str = MASKED) -> ConfigError:
    """The one message for optimizers whose slots cannot be moved."""
    return ConfigError(f"optimizer {name} cannot share a pool: {reason}. {remedy}")


def _compare_whole_and_parts(optimizer: torch.optim.Optimizer, group: Group, like: Tensor, remedy: str) -> None:
    name = type(optimizer).__name__
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(12, 1, generator=generator, dtype=torch.float64).to(like)
    whole, parts = _parameter(start), [_parameter(start[:5]), _parameter(start[5:])]
    one, two = _twin(optimizer, group, [whole]), _twin(optimizer, group, parts)
    for _ in range(3):
        grad = torch.randn(12, 1, generator=generator, dtype=torch.float64).to(like)
        whole.grad, parts[0].grad, parts[1].grad = grad.clone(), grad[:5].clone(), grad[5:].clone()
        one.step()
        two.step()
    for key, value in one.state[whole].items():
        if torch.is_tensor(value) and value.numel() > 1 and value.shape != whole.shape:
            reason = f"its state {key!r} has shape {tuple(value.shape)} for a parameter {tuple(whole.shape)}"
            raise refusal(name, reason, remedy)
    tolerance = 1e-4 if like.dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(whole, torch.cat([p.detach() for p in parts]), rtol=tolerance, atol=tolerance * 1e-2):
        raise refusal(name, "a tensor stepped whole and stepped in two parts ends differently", remedy)


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.clone())


def _is_slotwise(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _twin(optimizer: torch.optim.Optimizer, group: Group, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A throwaway optimizer of the same class and settings over other parameters."""
    cls = type(optimizer)
    settings = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    rate = float(settings.get("lr", 1e-3))
    settings["lr"] = rate if math.isfinite(rate) and rate > 0 else 1e-3  # a warm-up may start at zero
    accepted = inspect.signature(cls.__init__).parameters
    try:
        twin = cls(parameters, **{k: v for k, v in settings.items() if k in accepted})
    except Exception:  # a constructor of unknown form: a bare copy without state will do
        twin = copy.copy(optimizer)
        twin.__dict__ = {k: v for k, v in optimizer.__dict__.items() if not k.startswith("_optimizer_")}
        torch.optim.Optimizer.__init__(twin, parameters, dict(settings))
        twin.state = defaultdict(dict)
    twin.param_groups[0].update(settings)
    return twin


def scales(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step moves twice as far at twice the rate, once there is state: asked of a throwaway instance.

    An optimizer that cannot step a matrix of its own is believed.
    """
    group = optimizer.param_groups[0]
    like = group["params"][0]
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(4, 3, generator=generator, dtype=torch.float64).to(like) for _ in range(5)]
    moved = []
    try:
        for factor in (1, 2):
            weight = _parameter(torch.ones(4, 3, dtype=like.dtype, device=like.device))
            twin = _twin(optimizer, group, [weight])
            for step, gradient in enumerate(gradients):
                if step == len(gradients) - 2:  # some read the rate of the step before
                    twin.param_groups[0]["lr"] = twin.param_groups[0]["lr"] * factor
                before, weight.grad = weight.detach().clone(), gradient.clone()
                twin.step()
            moved.append(weight.detach() - before)
    except Exception:  # a foreign optimizer may raise anything; whether it steps is for its own first step to show
        return True
    return bool(torch.allclose(2 * moved[0], moved[1], rtol=5e-2, atol=5e-2 * float(moved[1].abs().max())))
