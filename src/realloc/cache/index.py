"""The index of a table of activations on disk: which example lies where. Written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from realloc.cache.keys import SIZE
from realloc.errors import ConfigError, plain
from realloc.kernels.digest import digest


def path_of(table: Path) -> Path:
    """Where the index of a table lies: beside it."""
    return table.with_name(table.name + ".index")


def write(table: Path, keys: Sequence[bytes], sizes: Sequence[int]) -> None:
    """Write an index under a name that nothing has, then rename it.

    Raises:
        ConfigError: the disk is full or refuses, or somebody else's file has the name.
    """
    check(table)
    path = path_of(table)
    young = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    data = save({"keys": _array(keys), "sizes": np.array(sizes, dtype=np.int64)})
    try:
        file = young.open("xb")
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            young.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                young.unlink()
            raise
    except OSError as error:
        raise ConfigError(
            f"the cache index {plain(path.name)!r} cannot be written: {error}; make room, or use no file"
        ) from error


def check(table: Path) -> None:
    """Refuse to replace what is no index. What is empty or not there may be replaced.

    Raises:
        ConfigError: somebody else's file has the name.
    """
    path = path_of(table)
    try:
        free = not path.exists() or (path.is_file() and not path.stat().st_size)
    except OSError:
        free = False
    if not free and not stands(table):
        raise ConfigError(
            f"{plain(path.name)!r} is no index of a cache (or a damaged one), and would be overwritten by the one of "
            f"{plain(table.name)!r}: name another cache file, or delete it if you do not need it"
        )


def stands(table: Path) -> bool:
    """Whether an index of ours lies beside a table; nothing but its head is read."""
    return read(table, 0) is not None


def read(table: Path, examples: int) -> tuple[list[bytes], list[int]] | None:
    """The first so many examples of an index, or None where there is no such index."""
    path = path_of(table)
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return None
        with safe_open(path, framework="numpy") as found:
            if set(found.keys()) != {"keys", "sizes"}:
                return None
            keys, sizes = found.get_slice("keys"), found.get_slice("sizes")
            rows, numbers = keys.get_shape(), sizes.get_shape()
            fits = (
                (keys.get_dtype(), sizes.get_dtype()) == ("U8", "I64")
                and rows[1:] == [SIZE] and numbers == rows[:1] and examples <= rows[0]
            )  # fmt: skip
            if not fits or not examples:
                return ([], []) if fits else None
            keys, sizes = keys[:examples], sizes[:examples]
    except (OSError, SafetensorError):
        return None
    return ([bytes(key) for key in keys], sizes.tolist()) if bool((sizes > 0).all()) else None


def sync(table: Path) -> None:
    """Wait until the disk has the table."""
    with table.open("rb+") as file:
        os.fsync(file.fileno())


def digest_of(keys: Sequence[bytes], sizes: Sequence[int], rows: Tensor, made: int) -> int:
    """Of an index, its rows, and what they were made with, 63 bits."""
    return digest([torch.from_numpy(_array(keys)), torch.tensor([*sizes, made], dtype=torch.int64), rows])


def _array(keys: Sequence[bytes]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, SIZE).copy()
