"""One frozen prefix, and what was found of it: put aside whole while other layers are tried, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from realloc.cache.store import Sealed, Store
from realloc.cache.watch import Watch


@final
@dataclass(eq=False)
class Prefix:
    """``end`` gates of the model are frozen; 0: none."""

    end: int = 0
    lower: tuple[nn.Module, ...] = ()
    watch: Watch = field(default_factory=lambda: Watch(nn.Identity(), ()))
    reading: bool = False  # whether it is read where it can be
    store: Store | None = None
    sealed: Sealed = field(default_factory=Sealed)  # what a checkpoint has of the table
    sure: bool = False  # whether reading was found to give what computing does
    apart: bool = False  # whether a row was found to be the same alone and in company
    low: dict[str, Tensor] = field(default_factory=dict)  # weights in bfloat16, while there is much to compute


def lowered(base: nn.Module, lower: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Weights and biases of the linear layers of a prefix in bfloat16, by name in the base.

    Autocast would round them to the same at each call: it keeps no weight that needs no gradient.
    """
    inside = set(lower)
    return {
        f"{name}.{key}": value.detach().to(torch.bfloat16)
        for name, module in base.named_modules()
        if module in inside and type(module) is nn.Linear
        for key, value in module.named_parameters(recurse=False)
        if value.dtype == torch.float32
    }
