"""Models that take long to read, kept as stock libraries write them, in the user's cache folder.

Reading SmolLM2 from its gguf file takes over twenty seconds, of which three are arithmetic: the rest is its list of
words, parsed four times over, and its tensors' names. Kept, it takes two. It is kept in float32, so no bit differs.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import realloc.record.disk as disk
import realloc.record.sealed as sealed
from realloc.errors import ConfigError, RecordError, plain, warn

CACHE: Final = "REALLOC_CACHE"  # a folder, or off
OFF: Final = "off"
MANIFEST: Final = "manifest.json"
VERSION: Final = 1
STALE: Final = 3600.0  # seconds after which what another process left half made is swept away
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.(json|txt|model|jinja|safetensors)")


def cache_folder() -> Path | None:
    """The folder for what can be made again, private to its owner: ``REALLOC_CACHE``, or the platform's; None: off.

    Raises:
        ConfigError: it belongs to another user, or others may write into it.
    """
    named = os.environ.get(CACHE, "")
    if named == OFF:
        return None
    folder = (Path(named).expanduser().absolute() if named else _usual() / "realloc") / "models"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        found = folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ConfigError(
                f"the cache folder {disk.shown(folder)} belongs to another user, or others may write into it; set "
                f"{CACHE} to a folder of your own, or to {OFF}"
            )
    return folder


def _usual() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if Path(named).is_absolute() else Path.home() / ".cache"


def converted(source: Path, maker: str, make: Callable[[Path], None]) -> Path | None:
    """The folder that ``make`` wrote from a file, now or earlier; every byte of it is checked each time.

    Args:
        source: the file; known by its content.
        maker: who makes it, with version: of another one nothing is taken.
        make: writes into the folder that it is given.

    Returns:
        The folder; None where nothing can be kept, which is said aloud (RA302) unless it was asked for.

    Raises:
        ConfigError: a cache folder that others may write into.
    """
    try:
        folder = cache_folder()
        if folder is None:
            return None
        key = disk.digest(source).sha256[:32]
        target = folder / f"{key}-{re.sub('[^A-Za-z0-9.]', '', maker)[:32]}-{VERSION}"
        if target.is_symlink() or target.exists():
            try:
                _check(target)
            except RecordError as error:
                warn("RA302", f"a model in the cache is damaged and is made anew: {error}")
                disk.remove(target)
            else:
                return target
        return _made(folder, target, key, make)
    except (OSError, RecordError) as error:
        warn("RA302", f"the model is read anew each time, since it cannot be kept: {plain(str(error))[:200]}")
        return None


def _made(folder: Path, target: Path, key: str, make: Callable[[Path], None]) -> Path:
    half = folder / f"tmp-{os.getpid()}"
    for old in folder.glob("tmp-*"):
        if old == half or time.time() - old.lstat().st_mtime > STALE:
            disk.remove(old)
    half.mkdir(mode=0o700)
    try:
        make(half)
        files = {}
        for file in sorted(half.iterdir()):
            disk.sync_file(file)
            found = disk.digest(file)
            files[file.name] = {"bytes": found.size, "sha256": found.sha256}
        disk.replace(half / MANIFEST, sealed.seal({"files": files}))
        for other in folder.glob(f"{key}-*"):  # of another version
            if other != target:
                disk.remove(other)
        if not target.exists():
            disk.rename(half, target)
    finally:
        if half.exists():
            disk.remove(half)
    _check(target)
    return target


def _check(folder: Path) -> None:
    """Refuse a folder that is not what was written.

    Raises:
        RecordError: a file more, less or changed, a name that leads elsewhere, or something that is no plain file.
    """
    with disk.told("read", folder, "it is made anew"):
        if folder.is_symlink():
            raise RecordError(f"{disk.shown(folder)} is a link")
        content = sealed.unseal(disk.read(folder / MANIFEST, sealed.MOST), disk.shown(folder / MANIFEST))
        files = content.get("files")
        if not isinstance(files, dict) or not all(_NAME.fullmatch(name) for name in files):
            raise RecordError(f"{disk.shown(folder / MANIFEST)} names files that no model has")
        if {file.name for file in folder.iterdir()} != {*files, MANIFEST}:
            raise RecordError(f"{disk.shown(folder)} does not hold the files of its {MANIFEST}")
        for name, wanted in files.items():
            found = disk.digest(folder / name)
            if wanted != {"bytes": found.size, "sha256": found.sha256}:
                raise RecordError(f"{disk.shown(folder / name)} differs from what was written")
