"""One frozen prefix, and what was found of it: put aside whole while other layers are tried, and put back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from torch import nn

from realloc.cache.store import Store
from realloc.cache.watch import Watch


@final
@dataclass(eq=False)
class Prefix:
    """``end`` gates of the model are frozen; 0: none."""

    end: int = 0
    lower: tuple[nn.Module, ...] = ()
    watch: Watch = field(default_factory=lambda: Watch(()))
    reading: bool = False  # whether it is read where it can be
    store: Store | None = None
    sealed: tuple[int, int, int] = (0, 0, 0)  # what a checkpoint has of the table: examples, tokens, digest
    sure: bool = False  # whether reading was found to give what computing does
