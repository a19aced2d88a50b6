"""Looking at a model without leaving a trace on its switches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Afterwards each module trains or not, and each parameter requires a gradient or not, as before.

    One by one, since a user may have set some by hand.

    >>> model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1))
    >>> with as_it_was(model):
    ...     _ = model.eval().requires_grad_(False)
    >>> model[0].training, model[1].weight.requires_grad
    (True, True)
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
