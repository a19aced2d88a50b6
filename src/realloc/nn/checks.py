"""Settings that are refused before anything is built."""

from __future__ import annotations

from realloc.errors import ConfigError


def whole(name: str, value: object, least: int) -> None:
    """Refuse what is no integer from a least one on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it is an integer, {least} or more")
