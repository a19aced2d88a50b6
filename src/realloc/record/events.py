"""The append-only log of a run: one JSON line per decision or metric, each with a checksum."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

import realloc.record.disk as disk
import realloc.record.sealed as sealed
from realloc.errors import ConfigError, RecordError, plain

VERSION = 1
_TAIL = len(b',"crc":"00000000"}')
_DEPTH = 32
_RETRY = "make room or rights on that disk, then resume the run"


@final
@dataclass(frozen=True)
class Events:
    """What `read` found: all whole lines, and the byte offset where a torn last line begins (None: not torn)."""

    lines: tuple[dict[str, Any], ...]
    cut: int | None


@final
class EventLog:
    """Writer of `events.jsonl`.

    Each line is ``{"v":1,"kind":...,...,"crc":"xxxxxxxx"}``, written by one O_APPEND write; ``crc`` is the crc32 of the
    line without it. NaN and infinities are written as the strings "NaN", "Infinity", "-Infinity". Names are kept as
    they are, escaped to ASCII, so that showing the file on a terminal is harmless.

    A torn last line (power cut, `kill -9`) is dropped when the log is opened for writing; whole lines never are.
    No file stays open, so the log survives `copy.deepcopy`, fork and spawn.

    Raises:
        ConfigError: no path.
        RecordError: the file cannot be read or written, or is no plain file.

    Example:
        >>> import tempfile
        >>> log = EventLog(Path(tempfile.mkdtemp()) / "events.jsonl")
        >>> log.decision({"kind": "move", "step": 100, "budget": 10, "predicted_gain": float("nan")})
        >>> log.metric(100, {"loss": 0.5})
        >>> [(e["kind"], e["step"]) for e in read(log.path).lines]
        [('move', 100), ('metric', 100)]
    """

    def __init__(self, path: Path | str) -> None:
        text = str(path)
        if not text.strip() or "\0" in text:
            raise ConfigError(f"the record is {plain(text)!r}, which names no file; give a path such as runs/a.jsonl")
        self.path = Path(path).expanduser()
        self.offset = 0
        with disk.told("open", self.path, _RETRY):
            disk.make_folder(self.path.parent)
            disk.touch(self.path)  # what cannot be written to is refused now, not at the first move
            self.offset = _whole(self.path)
            if self.offset < disk.size_of(self.path):
                disk.cut(self.path, self.offset)

    def decision(self, event: Mapping[str, object]) -> None:
        """Write one decision: a move made, or skipped with its reason. Needs "kind" and "step"."""
        kind = event.get("kind")
        if not isinstance(kind, str) or "step" not in event:
            raise RecordError(f'a decision needs "kind" (a string) and "step"; got the keys {sorted(map(str, event))}')
        self.note(kind, event)

    def metric(self, step: int, values: Mapping[str, object]) -> None:
        """Write measured values at an optimizer step."""
        self.note("metric", {"step": step, "values": values})

    def note(self, kind: str, fields: Mapping[str, object]) -> None:
        """Write one line of any kind.

        Raises:
            RecordError: a value that JSON cannot hold (named), a full disk (nothing of the line stays), another writer.
        """
        if "crc" in fields or fields.get("v", VERSION) != VERSION:
            raise RecordError('"crc" and "v" of an event are written by the log; leave them out')
        line = _line({"v": VERSION, "kind": kind} | {k: v for k, v in fields.items() if k not in ("v", "kind")})
        with disk.told("append to", self.path, _RETRY):
            self.offset = disk.append(self.path, line, self.offset)

    def sync(self) -> int:
        """Wait until the disk has every line, and return the offset for a checkpoint to record."""
        if self.offset:
            with disk.told("sync", self.path, _RETRY):
                disk.sync_file(self.path)
        return self.offset

    def truncate(self, offset: int) -> None:
        """Go back to the offset that a checkpoint recorded, so that a resumed run repeats no line.

        Raises:
            RecordError: the log is shorter than that, or no line ends there.
        """
        size = disk.size_of(self.path) if self.path.exists() else 0
        if not 0 <= offset <= size:
            raise RecordError(
                f"{disk.shown(self.path)} ends at byte {size}, but the checkpoint was taken at byte {offset}: lines "
                "are lost; put the log back, or delete the newest checkpoint to fall back to the older one"
            )
        with disk.told("truncate", self.path, _RETRY):
            if offset and _byte(self.path, offset - 1) != b"\n":
                raise RecordError(
                    f"{disk.shown(self.path)} has no line that ends at byte {offset}, where the checkpoint was taken: "
                    "it is another run's log or damaged; put the right log back, or delete the newest checkpoint"
                )
            if offset < size:
                disk.cut(self.path, offset)
        self.offset = offset


def read(path: Path | str) -> Events:
    """Read a log, also while it is being written.

    Raises:
        RecordError: a damaged line (numbered) that is not merely a torn last one, a newer version, no such file.
    """
    path, position = Path(path), 0
    lines: list[dict[str, Any]] = []
    with disk.told("read", path, "check the path"), path.open("rb") as file:
        while raw := file.readline(sealed.MOST):
            if not raw.endswith(b"\n") and len(raw) < sealed.MOST:
                return Events(tuple(lines), position)
            lines.append(_parsed(raw, path, len(lines) + 1, position))
            position += len(raw)
    return Events(tuple(lines), None)


def number(value: object) -> float:
    """Turn a logged value back into a float; "NaN", "Infinity" and "-Infinity" are the three strings it may be.

    >>> number("-Infinity"), number(2)
    (-inf, 2.0)
    """
    if isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    raise RecordError(f"{value!r} is not a logged number")


def _line(event: dict[str, object]) -> bytes:
    body = sealed.dump(_plain_json(event, "event", _DEPTH))
    line = body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)
    if len(line) >= sealed.MOST:
        raise RecordError(f"an event of {len(line)} bytes; one line holds fewer than {sealed.MOST}")
    return line


def _parsed(raw: bytes, path: Path, line: int, position: int) -> dict[str, Any]:
    text = raw[:-1]
    body = text[:-_TAIL] + b"}"
    if text[-_TAIL:] != b',"crc":"%08x"}' % zlib.crc32(body):
        raise RecordError(
            f"line {line} of {disk.shown(path)} is damaged (its checksum does not match; byte {position}); restore the "
            f"file, or resume the run, which cuts the log at its last checkpoint, or cut it by hand at byte {position}"
        )
    event = sealed.parse(body, f"line {line} of {disk.shown(path)}")
    if not isinstance(event, dict) or event.get("v") != VERSION:
        found = event.get("v") if isinstance(event, dict) else None
        raise RecordError(
            f"line {line} of {disk.shown(path)} has version {found!r}, this realloc reads {VERSION}; update realloc"
        )
    return event


def _plain_json(value: object, where: str, depth: int) -> object:
    """Turn numbers of torch and numpy into plain ones, and what JSON cannot hold into strings or an error."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _FINITE_NOT[str(float(value))]
    if depth and isinstance(value, Mapping):
        return {_key(k, where): _plain_json(v, f"{where}[{plain(str(k))!r}]", depth - 1) for k, v in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_plain_json(v, f"{where}[{i}]", depth - 1) for i, v in enumerate(value)]
    what = type(value).__name__ if depth else f"more than {_DEPTH} levels deep"
    raise RecordError(f"{where} is {what}; an event holds numbers, strings, None, lists and dicts")


def _key(key: object, where: str) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int):
        return str(key)
    raise RecordError(f"{where} has a key of type {type(key).__name__}; keys are strings")


_FINITE_NOT = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _byte(path: Path, position: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position)
        return file.read(1)


def _whole(path: Path) -> int:
    """Offset after the last newline, looked for from the end."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
