"""Ranks as a recipe says: a file that another run has written, or a mapping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from realloc.errors import ConfigError, plain
from realloc.methods.rank_method import RankMethod

MOST_BYTES: Final = 1 << 22
MOST_RANKS: Final = 1 << 16
FORM: Final = '{"format": "realloc ranks", "version": 1, "scale": 1.0, "ranks": {"layer.name": 8}}'


def fixed(ranks: Mapping[str, int] | str | Path, *, scale: float | None = None) -> RankMethod:
    """Hold the given ranks and never move one: another run's result without its measuring, or a choice by hand.

    Layers that are not named get none. The budget is what the named ones cost.

    Args:
        ranks: of each layer by name; or the path of a file from `realloc.export.recipe`.
        scale: factor of the ranks' part, alpha / r; None: the file's, or 1.

    Raises:
        ConfigError: no such file, one that is no recipe, or ranks that are no integers from 0.
    """
    if isinstance(ranks, (str, Path)):
        recipe = _read(Path(ranks))
        given, scale = recipe["ranks"], recipe["scale"] if scale is None else scale
    else:
        given = ranks
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"ranks are {plain(repr(given))[:80]}; give the ranks of layers by name, such as {FORM}")
    for name, rank in given.items():
        if (
            not isinstance(name, str)
            or isinstance(rank, bool)
            or not isinstance(rank, int)
            or not 0 <= rank <= MOST_RANKS
        ):
            raise ConfigError(f"rank of {plain(str(name))!r} is {plain(repr(rank))[:80]}; use an integer from 0")
    if not any(given.values()):
        raise ConfigError("every given rank is 0, so nothing would train; give some layer a rank")
    return RankMethod("fixed", scale=1.0 if scale is None else scale, ranks=tuple(given.items()))


def _read(path: Path) -> dict[str, Any]:
    """A recipe from outside: trusted with nothing."""
    shown = repr(plain(str(path)))
    try:
        if not path.is_file():
            raise ConfigError(f"{shown} is no file; give one that realloc.export.recipe has written")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{shown} is larger than any recipe ({MOST_BYTES:,} bytes)")
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{shown} cannot be read as a recipe: {plain(str(error))[:120]}; it looks like {FORM}"
        ) from None
    if not isinstance(found, dict) or found.get("format") != "realloc ranks" or found.get("version") != 1:
        raise ConfigError(f"{shown} is no recipe of ranks in version 1; it looks like {FORM}")
    if {"ranks", "scale"} - found.keys():
        raise ConfigError(f"{shown} lacks ranks or scale; it looks like {FORM}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number")
