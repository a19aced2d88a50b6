"""Parameters and their optimizer state as they are at one moment, to be put back; and their mean over some steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

State = dict[str, Any]


@final
@dataclass(frozen=True, eq=False)
class Snapshot:
    """Copies, by the parameter's name. A parameter that no update has reached yet has no moments."""

    values: Mapping[str, Tensor]
    moments: Mapping[str, State]


@torch.no_grad()
def taken(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> Snapshot:
    """Copy what is there now."""
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    states = {name: optimizer.state[p] for name, p in parameters.items() if p in optimizer.state}
    return Snapshot(values, {name: _copied(state) for name, state in states.items()})


@torch.no_grad()
def put(snapshot: Snapshot, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Write it back into the same parameters, bit for bit. Their gradients are dropped."""
    for name, parameter in parameters.items():
        parameter.copy_(snapshot.values[name])
        parameter.grad = None
        state = snapshot.moments.get(name)
        if state is None:
            optimizer.state.pop(parameter, None)
        else:
            optimizer.state[parameter] = _copied(state)


def take_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Take the gradients off a module's parameters, frozen ones too, and hand them out by the parameter's name.

    >>> layer = nn.Linear(1, 1)
    >>> layer(torch.ones(1)).backward()
    >>> sorted(pending := take_gradients(layer)), layer.weight.grad
    (['bias', 'weight'], None)
    >>> put_gradients(pending, layer)
    >>> layer.weight.grad
    tensor([[1.]])
    """
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    put_gradients({}, module)
    return found


def put_gradients(gradients: Mapping[str, Tensor], module: nn.Module) -> None:
    """Put back what `take_gradients` took; every other parameter is left without a gradient."""
    for name, parameter in module.named_parameters():
        parameter.grad = gradients.get(name)


@torch.no_grad()
def put_buffers(values: Mapping[str, Tensor], module: nn.Module) -> None:
    """Write a module's buffers back, as ``named_buffers()`` named them."""
    for name, buffer in module.named_buffers():
        buffer.copy_(values[name])


def _copied(state: State) -> State:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}


@final
class Mean:
    """The mean of parameters over some steps, less noisy than the last of them (Izmailov et al. 2018, 1803.05407).

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> mean = Mean({"weight": weight})
    >>> for value in (1.0, 3.0):
    ...     _ = weight.data.fill_(value)
    ...     mean.add()
    >>> with mean.shown():
    ...     weight.tolist()
    [2.0, 2.0]
    >>> weight.tolist()
    [3.0, 3.0]
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor] | None = None, count: int = 0
    ):
        self._parameters = parameters
        self.sums = dict(sums) if sums is not None else {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.count = count

    @torch.no_grad()
    def add(self) -> None:
        """Count the parameters as they are now."""
        torch._foreach_add_([self.sums[name] for name in self._parameters], list(self._parameters.values()))
        self.count += 1

    @contextmanager
    def shown(self) -> Iterator[None]:
        """In this block the parameters are the mean; afterwards what they were, bit for bit."""
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            self._write({name: one / self.count for name, one in self.sums.items()})
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
