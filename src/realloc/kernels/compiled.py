"""Compiling kernels, once for each dtype, at first use; kept on disk only where the user names a folder."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import torch
from numba import types

from realloc.errors import ConfigError
from realloc.kernels import csr, hashing, insert, sets, sort

CACHE: Final = "REALLOC_KERNEL_CACHE"
KERNELS: Final[dict[str, Callable[[Any], None]]] = {
    "panels": csr.panels,
    "forward": csr.forward,
    "backward": csr.backward,
    "scatter": csr.scatter,
    "collect": csr.collect,
    "each": csr.each,
    "gather": csr.gather,
    "count": sort.count,
    "place": sort.place,
    "spread": sort.spread,
    "fold": sort.fold,
    "locate": sets.locate,
    "merge": sets.merge,
    "digest": sets.digest,
    "draw": sets.draw,
    "best": sets.best,
    "insert": insert.insert,
    "seek": hashing.seek,
    "pair": hashing.pair,
    "tally": hashing.tally,
}
_TYPES: Final = {torch.float32: types.float32, torch.float64: types.float64}


@functools.cache
def cache_folder() -> Path | None:
    """The folder named by ``REALLOC_KERNEL_CACHE``, made private to its owner; one of another user is refused.

    Raises:
        ConfigError: the folder belongs to another user, who could put code into it.
    """
    named = os.environ.get(CACHE)
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        owner = folder.stat().st_uid
        if owner != os.getuid():
            raise ConfigError(f"{CACHE}={named}: the folder belongs to user {owner}; name one of your own")
        folder.chmod(0o700)
    # Numba looks at one file's date only, and a kernel is made of several files.
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    inner = folder / digest.hexdigest()[:16]
    inner.mkdir(mode=0o700, exist_ok=True)
    return inner


@functools.cache
def _function(kernel: str, dtype: torch.dtype) -> Any:
    folder, before = cache_folder(), numba.config.CACHE_DIR
    try:
        if folder is not None:
            numba.config.CACHE_DIR = str(folder)
        signature = types.void(types.CPointer(_TYPES[dtype]))
        return numba.cfunc(signature, cache=folder is not None, error_model="numpy")(KERNELS[kernel])
    finally:
        numba.config.CACHE_DIR = before


@functools.cache
def address_of(kernel: str, dtype: torch.dtype) -> int:
    """Address of the C function ``void f(T *task)``. The pointer's type says the dtype; the task is int64 words."""
    return int(_function(kernel, dtype).address)
