"""Running a kernel on torch's own threads.

torch and Numba would each bring an OpenMP pool, and idle threads of one spin against busy threads of the other. So the
kernels are compiled as plain C functions and handed to the OpenMP library that torch itself has loaded. Where it cannot
be found (Windows, macOS) Python threads do it. A forked child must not touch the parent's OpenMP pool: it runs alone.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

from realloc.errors import StateError
from realloc.kernels.task import FAULT, OTHER, PART, PART_CALL, PARTS, PARTS_CALL, SAMPLES, Words, X, task

DAMAGED: Final = "a unit of the placement lies outside the layer; the model's placement buffers are damaged"
SMALL: Final = 1 << 15  # multiply-adds below which a second thread costs more than it brings
_state: dict[str, bool] = {"forked": False}


def _after_fork() -> None:
    _state["forked"] = True
    _threads.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def forked() -> bool:
    """Whether this process is a forked child."""
    return _state["forked"]


@functools.cache
def openmp() -> tuple[Any, int, int] | None:
    """``GOMP_parallel`` and the addresses of two OpenMP calls, of the library torch uses; None if it has none."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        try:
            library = ctypes.CDLL(str(path))
            launch = library.GOMP_parallel
            calls = library.omp_get_thread_num, library.omp_get_num_threads
        except (OSError, AttributeError):
            continue
        launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        launch.restype = None
        first, second = (int(ctypes.cast(f, ctypes.c_void_p).value or 0) for f in calls)
        return launch, first, second
    return None


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="realloc-kernel")


_C: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> tuple[int, Callable[[Any], None]]:
    from realloc.kernels.compiled import address_of  # the only door to Numba, which compiles at first use

    address = address_of(name, dtype)
    return address, _C(address)


def run(kernel: str, dtype: torch.dtype, words: Words, work: int) -> None:
    """Run one kernel over its task as a team; small work (multiply-adds) runs alone.

    Raises:
        StateError: an index of the placement lies outside the layer. Nothing outside it was read.
    """
    if not fits(kernel, dtype, words, work):
        raise StateError(DAMAGED)


def fits(kernel: str, dtype: torch.dtype, words: Words, work: int = 0) -> bool:
    """Run one kernel, and say whether what it met fits; if not, what it wrote is not to be used."""
    address, call = _kernel(kernel, dtype)
    made = task(words)
    parts = 1 if work < SMALL or forked() else torch.get_num_threads()
    found = openmp() if parts > 1 else None
    if parts == 1:
        made[PARTS] = 1
        call(ctypes.addressof(made))
        return not made[FAULT]
    if found is not None:
        launch, made[PART_CALL], made[PARTS_CALL] = found
        launch(address, ctypes.addressof(made), parts, 0)
        return not made[FAULT]
    return not _by_python(call, words, parts)


def run_each(kernel: str, dtype: torch.dtype, tasks: Sequence[Words], work: int) -> None:
    """Run one kernel alone on each of several tasks, side by side; ``work`` of them all."""
    made = [task({**words, PARTS: 1}) for words in tasks]
    address, _ = _kernel(kernel, dtype)
    table = torch.tensor([ctypes.addressof(one) for one in made], dtype=torch.int64)
    run("each", torch.float32, {OTHER: address, X: table, SAMPLES: len(made)}, work)
    if any(one[FAULT] for one in made):
        raise StateError(DAMAGED)


def _by_python(call: Callable[[Any], None], words: Words, parts: int) -> int:
    tasks = [task({**words, PART: part, PARTS: parts}) for part in range(parts)]
    list(_threads(parts).map(lambda made: call(ctypes.addressof(made)), tasks))
    return sum(int(made[FAULT]) for made in tasks)
