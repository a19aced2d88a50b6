"""JSON that shows damage: parsed with limits, written in one exact form, sealed with its own sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import realloc.record.disk as disk
from realloc.errors import RecordError

MOST = 16 << 20
"""Most bytes of one JSON file: small enough that no content of it can fill the memory."""

_SEAL = "sha256"
T = TypeVar("T")


def dump(value: object) -> bytes:
    """Write JSON in its exact form: ASCII (so no name reaches a terminal raw), no spaces, no bare NaN.

    Raises:
        ValueError, TypeError: what JSON cannot hold.

    >>> dump({"a": [1, 2.5, None]})
    b'{"a":[1,2.5,null]}'
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def parse(data: bytes, what: str) -> Any:
    """Read JSON that a stranger may have written.

    Raises:
        RecordError: not JSON, nested too deeply, a number too long, a bare NaN.
    """
    if len(data) > MOST:
        raise RecordError(f"{what} is {len(data)} bytes, more than the {MOST} that realloc reads")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise RecordError(f"{what} is nested too deeply to be written by realloc") from None
    except ValueError as error:
        raise RecordError(f"{what} is not valid JSON ({str(error)[:200]})") from None


def seal(content: Mapping[str, object]) -> bytes:
    """Write ``content`` with the sha256 of itself as last entry, indented for human eyes.

    Raises:
        ValueError, TypeError: what JSON cannot hold.

    >>> unseal(seal({"step": 3}), "example")
    {'step': 3}
    """
    # Keys become strings and tuples lists before hashing, as they will be when read.
    content = json.loads(dump(content))
    return _written({**content, _SEAL: hashlib.sha256(dump(content)).hexdigest()})


def unseal(data: bytes, what: str) -> dict[str, Any]:
    """Read what `seal` wrote; every changed byte is found.

    Raises:
        RecordError: not JSON, no object, or any byte differs from what was written.
    """
    content = parse(data, what)
    if not isinstance(content, dict) or not isinstance(content.get(_SEAL), str):
        raise RecordError(f"{what} carries no sha256 of its own: it is damaged or not written by realloc")
    try:
        exact = _written(content) == data
    except (ValueError, RecursionError):
        exact = False
    told = content.pop(_SEAL)
    if not exact or hashlib.sha256(dump(content)).hexdigest() != told:
        raise RecordError(f"{what} differs from what was written (its sha256 does not match)")
    return content


def _written(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, allow_nan=False, indent=1).encode("ascii") + b"\n"


def _refuse(constant: str) -> None:
    raise ValueError(f"a bare {constant}")


def made(make: Callable[[], T], file: Path, remedy: str = "start a new run") -> T:
    """Make an object of what a file holds.

    Raises:
        RecordError: its keys or values are not those of this version.

    >>> made(lambda: {}["steps"], Path("length.json"))
    Traceback (most recent call last):
    ...
    realloc.errors.RecordError: 'length.json' was written by another version of realloc; start a new run
    """
    try:
        return make()
    except (TypeError, KeyError, ValueError):  # a config that is refused is a ValueError
        raise RecordError(f"{disk.shown(file)} was written by another version of realloc; {remedy}") from None
