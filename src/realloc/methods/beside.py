"""Where something small trains beside frozen weights: ranks, or a sparse delta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

from realloc.errors import ConfigError


@final
@dataclass(frozen=True)
class Beside:
    """Which linear layers take part, and what trains in full beside them."""

    layers: tuple[str, ...] | None = None  # None: every plain nn.Linear but those of the head
    exclude: tuple[str, ...] = ()
    train: tuple[str, ...] | None = None  # None: the task head

    @classmethod
    def of(cls, layers: tuple[str, ...], exclude: tuple[str, ...], train: tuple[str, ...] | None) -> Self:
        """Of patterns as users give them.

        Raises:
            ConfigError: a string where a tuple of patterns belongs.
        """
        for name, value in (("exclude", exclude), ("train", train)):
            if isinstance(value, str):
                raise ConfigError(f"{name} is the string {value!r}; use a tuple of patterns: ({value!r},)")
        return cls(layers or None, tuple(exclude), None if train is None else tuple(train))
