"""A run folder: the resolved config before anything slow, one owner at a time, a result at the end.

runs/a/
├── config.json        written first, never changed; makes the folder a run folder
├── events.jsonl       the log (events.py)
├── checkpoints/       (checkpoint.py)
├── result.json        there when the run is finished
├── run.lock           an flock held for life: it ends with its process, also by kill -9
└── owner.json         who holds it, for the message
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import realloc.record.disk as disk
import realloc.record.sealed as sealed
from realloc.errors import ConfigError, RecordError, plain
from realloc.record.hold import FILES, Hold
from realloc.record.names import inside

VERSION = 1
_CONFIG, _RESULT = "config.json", "result.json"
_RETRY = "make room or rights there, or choose another folder"


@final
class RunFolder:
    """A run folder held by this process.

    Raises (`create`, `open`):
        RecordError: another process holds it (with pid, host, age), it is no run folder, it holds other files.
        ConfigError: a path that cannot be a folder, a config that JSON cannot hold.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> with RunFolder.create(path, {"method": "rigl", "density": 0.1}) as run:
        ...     run.finish({"metric": 0.9})
        >>> with RunFolder.open(path) as run:
        ...     run.config["method"], run.result
        ('rigl', {'metric': 0.9})
    """

    def __init__(self, path: Path, hold: Hold, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self._hold = hold

    @classmethod
    def create(cls, path: Path | str, config: Mapping[str, object]) -> Self:
        """Make the folder and write its config; an existing one must be empty."""
        path = _checked(path)
        try:
            text = sealed.seal({"format": "realloc-run", "v": VERSION, "content": dict(config)})
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the config of a run must be plain JSON: {plain(str(error))[:200]}") from None
        with disk.told("make the run folder", path, _RETRY):
            disk.make_folder(path)
            _refuse_foreign(path)
            hold = Hold.take(path)
            try:
                _refuse_foreign(path)  # another process may have been quicker
                disk.replace(path / _CONFIG, text)
            except BaseException:
                hold.release()
                raise
        return cls(path, hold, sealed.unseal(text, "the config")["content"])

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Take hold of an existing run, to resume it."""
        path = _checked(path)
        read_config(path)  # before the lock: nothing is written into a folder that is no run
        with disk.told("open the run folder", path, _RETRY):
            hold = Hold.take(path)
        try:
            return cls(path, hold, read_config(path))
        except BaseException:
            hold.release()
            raise

    @property
    def events(self) -> Path:
        """Where the log of events is."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run; None while it is not finished."""
        return read_result(self.path)

    def file(self, name: str) -> Path:
        """Path of another file of this run. ConfigError when the name leads elsewhere."""
        return inside(self.path, name)

    def read(self, name: str, most: int) -> dict[str, Any] | None:
        """What ``write`` put into another file of this run, of at most so many bytes; None where there is none."""
        file = self.file(name)
        if not file.exists():
            return None
        return read_sealed(file, most, "put the written one back, or start a new run in another folder")

    def write(self, name: str, values: Mapping[str, object]) -> None:
        """Write a file that a resume reads, sealed and atomically."""
        file = self.file(name)
        with disk.told("write", file, "make room or rights there, then resume the run"):
            disk.replace(file, sealed.seal(values))

    def finish(self, result: Mapping[str, object]) -> None:
        """Write the result, atomically: from now on the run counts as finished.

        Raises:
            RecordError: the disk is full, or JSON cannot hold the result (NaN: write None or a string).
        """
        try:
            text = sealed.seal({"format": "realloc-result", "v": VERSION, "content": dict(result)})
        except (TypeError, ValueError, RecursionError) as error:
            raise RecordError(f"the result of a run must be plain JSON: {plain(str(error))[:200]}") from None
        with disk.told("write the result in", self.path, "make room or rights there, then resume the run"):
            disk.replace(self.path / _RESULT, text)

    def close(self) -> None:
        """Let go of the folder; twice does no harm."""
        self._hold.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_config(path: Path | str) -> dict[str, Any]:
    """Read the config of a run without taking hold of it.

    Raises:
        RecordError: no run folder, or its config was changed after the run began.
    """
    path = Path(path)
    if not path.is_dir():
        raise RecordError(f"the run folder {disk.shown(path)} does not exist; check the path, or start a run there")
    if not (path / _CONFIG).exists():
        raise RecordError(f"{disk.shown(path)} is not a run folder (no {_CONFIG}); check the path, or start a new run")
    return _content(path / _CONFIG, "realloc-run", "put the written one back, or start a new run from the changed one")


def read_result(path: Path | str) -> dict[str, Any] | None:
    """Read the result of a run without taking hold of it; None while it is not finished.

    Raises:
        RecordError: the file is damaged.
    """
    file = Path(path) / _RESULT
    return _content(file, "realloc-result", "delete it and resume the run to get it again") if file.exists() else None


def read_sealed(file: Path, most: int, remedy: str) -> dict[str, Any]:
    """Read a sealed file of a run, of at most so many bytes.

    Raises:
        RecordError: it cannot be read, or was changed: the message ends with ``remedy``.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.json"
    >>> _ = file.write_bytes(sealed.seal({"step": 3}))
    >>> read_sealed(file, 100, "write it again")
    {'step': 3}
    """
    with disk.told("read", file, "check the rights on it"):
        try:
            return sealed.unseal(disk.read(file, most), disk.shown(file))
        except RecordError as error:
            raise RecordError(f"{error}; {remedy}") from None


def _content(file: Path, kind: str, remedy: str) -> dict[str, Any]:
    content = read_sealed(file, sealed.MOST, remedy)
    if content.get("format") != kind or not isinstance(content.get("content"), dict):
        raise RecordError(f"{disk.shown(file)} was not written by realloc; {remedy}")
    if content.get("v") != VERSION:
        raise RecordError(f"{disk.shown(file)} has version {content.get('v')!r}, not {VERSION}; update realloc")
    return dict(content["content"])


def _checked(path: Path | str) -> Path:
    text = str(path)
    if not text or plain(text) != text or any(len(part.encode()) > 255 for part in Path(text).parts):
        raise ConfigError(
            f"{plain(text[:80])!r} cannot be a run folder: it is empty, or holds a control character or a name over "
            "255 bytes; choose another"
        )
    return Path(text)


def refuse_foreign(path: Path, ours: Callable[[str], bool], what: str) -> None:
    """Refuse to begin in a folder that holds something else.

    Args:
        path: the folder; it need not be there yet.
        ours: which names may lie there.
        what: begins, such as "a run".

    Raises:
        RecordError: it holds another name, or is a file.
    """
    with disk.told("look into", path, _RETRY):
        names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    foreign = next((name for name in names if not ours(name) and not name.startswith("tmp-")), None)
    if foreign is not None:
        raise RecordError(
            f"{disk.shown(path)} is not empty (it holds {plain(foreign)!r}); {what} starts in an empty folder: choose "
            "another"
        )


def _refuse_foreign(path: Path) -> None:
    config = path / _CONFIG
    if config.exists() and b"realloc-run" in disk.read(config, sealed.MOST):
        raise RecordError(
            f"{disk.shown(path)} holds a run already; resume it (realloc resume {plain(str(path))}), or choose another "
            "folder"
        )
    # A create that was killed before its config leaves FILES; such a folder is as good as empty.
    refuse_foreign(path, lambda name: name in FILES, "a run")
