"""Optimizers by name, each with its usual rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

from torch import nn, optim

Make = Callable[..., optim.Optimizer]


@final
@dataclass(frozen=True)
class Choice:
    """One optimizer: how to make it, the rate used when none is given, and the moments that it keeps of a weight."""

    make: Make
    rate: float
    moments: int = 2


# fused where torch has it on CPU: dense torch's best, so that no arm is slowed down to flatter another
OPTIMIZERS: Mapping[str, Choice] = {
    "adamw": Choice(partial(optim.AdamW, fused=True), 1e-3),
    "adam": Choice(partial(optim.Adam, fused=True), 1e-3),
    "sgd": Choice(partial(optim.SGD, momentum=0.9, fused=True), 0.05, moments=1),
    "rmsprop": Choice(optim.RMSprop, 3e-4, moments=1),
    "adagrad": Choice(optim.Adagrad, 1e-2, moments=1),
    "nadam": Choice(optim.NAdam, 1e-3),
    "radam": Choice(optim.RAdam, 1e-3),
    "adamax": Choice(optim.Adamax, 2e-3),
}


def make(name: str, parameters: Iterable[nn.Parameter], rate: float) -> optim.Optimizer:
    """Make the optimizer called ``name`` over all trainable parameters."""
    return OPTIMIZERS[name].make([p for p in parameters if p.requires_grad], lr=rate)
