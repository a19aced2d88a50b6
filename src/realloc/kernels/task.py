"""The words of a task: how Python hands addresses and sizes to a compiled kernel. int64 each."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

from torch import Tensor

# how many parts there are (first by asking OpenMP, else by number), and whether an index was outside the layer
PART_CALL, PARTS_CALL, PART, PARTS, FAULT = range(5)
X, X_STEP, SAMPLES, FEATURES, PANEL = range(5, 10)
POINTER, OTHER, ORDER, VALUES, LINES = range(10, 15)
OUT, OUT_STEP, BIAS, GRADIENT, KEEP, SLIM, UNITS, OTHERS = range(15, 23)
WORDS: Final = 23

Task = ctypes.c_int64 * WORDS
Words = Mapping[int, Tensor | int | None]


def task(words: Words) -> ctypes.Array[ctypes.c_int64]:
    """An array of words. A tensor becomes its address: the caller keeps it alive; None becomes 0."""
    made = Task()
    for word, value in words.items():
        if value is not None:
            made[word] = value if value.__class__ is int else value.data_ptr()  # type: ignore[union-attr]
    return made
