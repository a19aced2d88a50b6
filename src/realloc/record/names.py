"""Names that become file names: nothing is ever written outside its folder."""

from __future__ import annotations

from pathlib import Path

from realloc.errors import ConfigError, plain

_FORBIDDEN = frozenset('/\\:*?"<>|')
_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))})
_MOST = 200


def inside(folder: Path, name: str) -> Path:
    """Return ``folder / name`` for one plain name.

    Raises:
        ConfigError: a name that leads elsewhere, or that some file system cannot hold: empty, `..`, a separator, a
            control character, over 200 bytes, a leading or trailing dot or space, reserved on Windows, a link.

    >>> inside(Path("runs"), "rigl-0").as_posix()
    'runs/rigl-0'
    >>> inside(Path("runs"), "../rigl")
    Traceback (most recent call last):
    realloc.errors.ConfigError: '../rigl' cannot name a file: it holds '/'; use letters, digits, '-' and '_'
    """
    reason = _objection(name)
    path = folder / name if reason is None else folder
    if reason is None and path.is_symlink():
        reason = "it is a link"
    if reason is not None:
        label = plain(name[:80])
        raise ConfigError(f"{label!r} cannot name a file: {reason}; use letters, digits, '-' and '_'")
    return path


def _objection(name: str) -> str | None:
    bad = sorted(_FORBIDDEN.intersection(name))
    if bad:
        return f"it holds {bad[0]!r}"
    if plain(name) != name:
        return "it holds a control character"
    if not name or name[0] in ". " or name[-1] in ". ":
        return "it is empty, or starts or ends with a dot or a space"
    if len(name.encode()) > _MOST:
        return f"it is longer than {_MOST} bytes"
    if name.split(".")[0].lower() in _RESERVED:
        return "Windows keeps that name for itself"
    return None
