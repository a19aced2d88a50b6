"""The index of a table of activations on disk: which example lies where. Written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from realloc.cache.keys import SIZE
from realloc.errors import ConfigError
from realloc.kernels.digest import digest


def path_of(table: Path) -> Path:
    """Where the index of a table lies: beside it."""
    return table.with_name(table.name + ".index")


def write(table: Path, keys: Sequence[bytes], sizes: Sequence[int]) -> None:
    """Write an index under another name, then rename it.

    Raises:
        ConfigError: the disk is full or refuses.
    """
    path = path_of(table)
    young = path.with_name(path.name + ".new")
    data = save({"keys": _array(keys), "sizes": np.array(sizes, dtype=np.int64)})
    try:
        with young.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        young.replace(path)
    except OSError as error:
        raise ConfigError(
            f"the cache index {path.name!r} cannot be written: {error}; make room, or use no file"
        ) from error


def read(table: Path, examples: int) -> tuple[list[bytes], list[int]] | None:
    """The first so many examples of an index, or None where there is no such index."""
    path = path_of(table)
    try:
        found = load_file(path)
    except (OSError, SafetensorError):
        return None
    keys, sizes = found.get("keys"), found.get("sizes")
    fits = (
        keys is not None and sizes is not None and keys.dtype == np.uint8 and sizes.dtype == np.int64
        and keys.ndim == 2 and keys.shape[1] == SIZE and sizes.shape == (len(keys),)
        and examples <= len(keys) and bool((sizes > 0).all())
    )  # fmt: skip
    if not fits or keys is None or sizes is None:
        return None
    return [bytes(key) for key in keys[:examples]], [int(size) for size in sizes[:examples]]


def sync(table: Path) -> None:
    """Wait until the disk has the table."""
    with table.open("rb+") as file:
        os.fsync(file.fileno())


def digest_of(keys: Sequence[bytes], sizes: Sequence[int], rows: Tensor, made: int) -> int:
    """Of an index, its rows, and what they were made with, 63 bits."""
    return digest([torch.from_numpy(_array(keys)), torch.tensor([*sizes, made], dtype=torch.int64), rows])


def _array(keys: Sequence[bytes]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, SIZE).copy()
