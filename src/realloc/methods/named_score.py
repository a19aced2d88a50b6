"""A score by its word, or one of your own: how every kind of unit takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from realloc.errors import ConfigError, nearest

Kind = TypeVar("Kind")


def named_score(given: str | Kind, kind: type[Kind], known: Mapping[str, Kind]) -> Kind:
    """The score that a word names, or the one that was given.

    Args:
        given: a word, or a score of that kind.
        kind: of score.
        known: the words.

    Raises:
        ConfigError: neither; the nearest word is named.

    >>> named_score("two", int, {"one": 1, "two": 2}), named_score(3, int, {})
    (2, 3)
    """
    found = known.get(given) if isinstance(given, str) else given
    if not isinstance(found, kind):
        near = nearest(given, known) if isinstance(given, str) else ""
        raise ConfigError(f"score is {given!r}{near}; use one of {', '.join(known)}, or a {kind.__name__}")
    return found
