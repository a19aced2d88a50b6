"""Atomic checkpoints: old or new, never neither, never half of one.

checkpoints/
├── 000006-step-500/                 kept, to fall back to
├── 000007-step-600/
│   ├── tensors.safetensors
│   ├── state.json
│   └── manifest.json                written last: size and sha256 of the others, and of itself
└── tmp-...                          a save that was cut short; ignored, removed by the next save
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

import realloc.record.disk as disk
import realloc.record.sealed as sealed
import realloc.record.tensors as tensors
from realloc.errors import RecordError, plain

VERSION = 1
_FORMAT = "realloc-checkpoint"
_FILES = ("tensors.safetensors", "state.json")
_MANIFEST = "manifest.json"
_NAME = re.compile(r"(\d{6,12})-step-(\d{1,18})", re.ASCII)


@final
@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, whole and verified. The tensors are mapped from its file: copy them, do not write into them."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(
    folder: Path | str, step: int, values: Mapping[str, Tensor], state: Mapping[str, object], *, keep: int = 2
) -> Path:
    """Write one checkpoint and return its folder; older ones than the last ``keep`` are removed afterwards.

    Order: temporary folder, each file and its fsync, manifest and its fsync, fsync of the folder, rename, fsync of the
    parent, only then the removal of old ones. The caller holds the run's lock.

    Raises:
        RecordError: disk full or any other disk error; the folder is a file; a value that cannot be saved. What was
            saved before stays.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> save(folder, 600, {"w": torch.ones(2)}, {"epoch": 3}).name
        '000001-step-600'
        >>> found = load_latest(folder)
        >>> found.step, found.state, found.tensors["w"].tolist()
        (600, {'epoch': 3}, [1.0, 1.0])
    """
    folder = Path(folder)
    if step < 0 or keep < 1:
        raise RecordError(f"a checkpoint needs step >= 0 and keep >= 1; got {step=} and {keep=}")
    text = _state_text(state)
    _refuse_file(folder)
    kept = "the checkpoints before it are whole: make room or rights, then resume the run"
    with disk.told("save a checkpoint in", folder, kept):
        disk.make_folder(folder)
        _clean(folder)
        number = max((n for n, _ in _numbered(folder)), default=0) + 1
        target = folder / f"{number:06d}-step-{step}"
        temporary = folder / f"tmp-{os.getpid()}-{target.name}"
        try:
            disk.make_folder(temporary)
            files = {
                _FILES[0]: disk.write_new(temporary / _FILES[0], tensors.chunks(values)),
                _FILES[1]: disk.write_new(temporary / _FILES[1], [text]),
            }
            disk.write_new(temporary / _MANIFEST, [_manifest(number, step, files)])
            disk.sync_folder(temporary)
            disk.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove(temporary)
            raise
        for _, old in _numbered(folder)[:-keep]:
            # Renamed first: a removal that is cut short must not look like a damaged checkpoint.
            aside = folder / f"tmp-old-{old.name}"
            disk.rename(old, aside)
            disk.remove(aside)
    return target


def load_latest(folder: Path | str) -> Checkpoint | None:
    """Read the newest checkpoint, verified before anything is returned; None when there is none yet.

    Raises:
        RecordError: the folder is a file; the newest one is damaged, foreign or of a newer version. An older one is
            never taken in its place unasked: the message says what to delete to fall back to it.
    """
    folder = Path(folder)
    _refuse_file(folder)
    with disk.told("list", folder, "check the rights on it"):
        found = _numbered(folder) if folder.is_dir() else []
    if not found:
        return None
    newest = found[-1][1]
    older = f"to {disk.shown(found[-2][1])}" if len(found) > 1 else "to the start of the run"
    try:
        return load(newest)
    except RecordError as error:
        raise RecordError(f"{error}; delete the folder {disk.shown(newest)} to fall back {older}") from error


def load(path: Path | str) -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        RecordError: anything in it differs from what was written: the message names the file.
    """
    path = Path(path)
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise RecordError(f"{disk.shown(path)} is not a checkpoint: its name should be like '000007-step-600'")
    with disk.told("read the checkpoint", path, "it is incomplete or unreadable"):
        manifest = _read_manifest(path)
        if (manifest["number"], manifest["step"]) != (int(match[1]), int(match[2])):
            raise RecordError(
                f"{disk.shown(path / _MANIFEST)} belongs to another checkpoint than its folder's name says"
            )
        # Sizes of all files before the content of any: cheap, and nothing is allocated for a wrong one.
        for name in _FILES:
            _same(path / name, "size in bytes", disk.size_of(path / name), manifest["files"][name]["size"])
        for name in _FILES:
            _same(path / name, "sha256", disk.digest(path / name).sha256, manifest["files"][name]["sha256"])
        state = sealed.parse(disk.read(path / _FILES[1], sealed.MOST), disk.shown(path / _FILES[1]))
        if not isinstance(state, dict):
            raise RecordError(f"{disk.shown(path / _FILES[1])} holds no JSON object")
        return Checkpoint(path, int(match[2]), tensors.load(path / _FILES[0]), state)


def _refuse_file(folder: Path) -> None:
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        raise RecordError(
            f"{disk.shown(folder)} is no folder, so no checkpoint lies in it; move it away, and put the folder back or "
            "begin anew"
        )


def listing(folder: Path | str) -> list[Path]:
    """Folders of all published checkpoints, oldest first, unverified."""
    folder = Path(folder)
    with disk.told("list", folder, "check the path"):
        return [path for _, path in _numbered(folder)] if folder.is_dir() else []


def _state_text(state: Mapping[str, object]) -> bytes:
    try:
        text = sealed.dump(dict(state))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(
            f"the state of a checkpoint must be plain JSON ({plain(str(error))[:200]}); use realloc.record.state.pack"
        ) from None
    if len(text) > sealed.MOST:
        raise RecordError(
            f"the state of a checkpoint is {len(text)} bytes of JSON, the limit is {sealed.MOST}; store long lists as "
            "tensors"
        )
    return text


def _manifest(number: int, step: int, files: Mapping[str, disk.Digest]) -> bytes:
    listed = {name: {"size": digest.size, "sha256": digest.sha256} for name, digest in files.items()}
    return sealed.seal({"format": _FORMAT, "v": VERSION, "number": number, "step": step, "files": listed})


def _read_manifest(path: Path) -> dict[str, Any]:
    what = disk.shown(path / _MANIFEST)
    manifest = sealed.unseal(disk.read(path / _MANIFEST, 1 << 16), what)
    if manifest.get("format") != _FORMAT:
        raise RecordError(f"{what} is not the manifest of a checkpoint")
    if manifest.get("v") != VERSION:
        raise RecordError(f"{what} has version {manifest.get('v')!r}, this realloc reads {VERSION}; update realloc")
    files = manifest.get("files")
    shaped = isinstance(files, dict) and set(files) == set(_FILES)
    if not shaped or not all(isinstance(f, dict) and {"size", "sha256"} <= set(f) for f in manifest["files"].values()):
        raise RecordError(f"{what} does not list exactly {', '.join(_FILES)}")
    return {"number": None, "step": None} | manifest


def _same(path: Path, what: str, found: object, written: object) -> None:
    if found != written:
        raise RecordError(f"{disk.shown(path)} is damaged: its {what} is {found}, but {written!r} was written")


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """Published checkpoints as (number, folder), oldest first."""
    matches = [(m, p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) is not None]
    link = next((path for _, path in matches if path.is_symlink()), None)
    if link is not None:  # what it leads to may be another run's, and old checkpoints are removed
        raise RecordError(f"{disk.shown(link)} is a link; put the folder itself there, or remove the link")
    return sorted((int(match[1]), path) for match, path in matches)


def _clean(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith("tmp-") and path.is_dir() and not path.is_symlink():
            disk.remove(path)
