"""Between a CSR index and other orders: by columns, and as sorted places."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from realloc.kernels import task as w
from realloc.kernels import vectors as v
from realloc.kernels.csr import even, part_of


@njit
def _sound(pointer: Any, lines: int, units: int) -> Any:
    """Whether a row pointer goes from 0 up to the number of units."""
    sound = v.get(pointer, 0) == 0 and v.get(pointer, lines) == units
    for line in range(lines):
        sound &= v.get(pointer, line) <= v.get(pointer, line + 1)
    return sound


def count(task: Any) -> None:
    """How many units of each column there are in each of SAMPLES ranges of rows: GRADIENT int32 [SAMPLES, FEATURES].

    POINTER, OTHER are a CSR index of LINES rows and KEEP units.
    """
    word = v.words(task)
    lines, width, chunks = v.get(word, w.LINES), v.get(word, w.FEATURES), v.get(word, w.SAMPLES)
    rowptr, columns = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    room, fault = v.integers(v.get(word, w.GRADIENT)), not _sound(rowptr, lines, v.get(word, w.KEEP))
    part, parts = part_of(word)
    first, last = even(chunks, part, parts)
    for chunk in range(first, 0 if fault else last):
        mine = v.shift(room, chunk * width)
        low, high = even(lines, chunk, chunks)
        for unit in range(v.get(rowptr, low), v.get(rowptr, high)):
            column = v.get(columns, unit)
            fault |= column < 0 or column >= width
            safe = column if 0 <= column < width else 0
            v.put(mine, safe, v.get(mine, safe) + 1)
    if fault:
        v.put(word, w.FAULT, 1)


def place(task: Any) -> None:
    """Write the row of each unit to X and its position (that of ORDER, if any) to PANEL, by columns.

    The rest as in `count`, whose result has become GRADIENT: where the next unit of a column goes.
    """
    word = v.words(task)
    lines, width, chunks = v.get(word, w.LINES), v.get(word, w.FEATURES), v.get(word, w.SAMPLES)
    rowptr, columns = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    inner, ordered = v.integers(v.get(word, w.ORDER)), v.get(word, w.ORDER) != 0
    other, order, room = (
        v.integers(v.get(word, w.X)),
        v.integers(v.get(word, w.PANEL)),
        v.integers(v.get(word, w.GRADIENT)),
    )
    part, parts = part_of(word)
    first, last = even(chunks, part, parts)
    for chunk in range(first, last):
        spot = v.shift(room, chunk * width)
        low, high = even(lines, chunk, chunks)
        for row in range(low, high):
            for unit in range(v.get(rowptr, row), v.get(rowptr, row + 1)):
                column = v.get(columns, unit)
                to = v.get(spot, column)
                v.put(spot, column, to + 1)
                v.put(other, to, row)
                v.put(order, to, v.get(inner, unit) if ordered else unit)


def spread(task: Any) -> None:
    """Places ``line * FEATURES + other`` of POINTER [LINES + 1], OTHER [SAMPLES] into OUT, int64."""
    word = v.words(task)
    pointer, other = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    width, out = v.get(word, w.FEATURES), v.long_integers(v.get(word, w.OUT))
    if not _sound(pointer, v.get(word, w.LINES), v.get(word, w.SAMPLES)):
        v.put(word, w.FAULT, 1)
        return
    fault: Any = False
    for line in range(v.get(word, w.LINES)):
        last: Any = -1
        for unit in range(v.get(pointer, line), v.get(pointer, line + 1)):
            column = np.int64(v.get(other, unit))
            fault |= column <= last or column >= width
            v.put(out, unit, line * width + column)
            last = column
    if fault:
        v.put(word, w.FAULT, 1)


def fold(task: Any) -> None:
    """The inverse of `spread`: ascending places X int64 [SAMPLES] into POINTER [LINES + 1] and OTHER."""
    word = v.words(task)
    pointer, other = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    width, places, count = v.get(word, w.FEATURES), v.long_integers(v.get(word, w.X)), v.get(word, w.SAMPLES)
    unit = 0
    for line in range(v.get(word, w.LINES)):
        v.put(pointer, line, unit)
        start = line * width
        while unit < count and v.get(places, unit) < start + width:
            v.put(other, unit, v.get(places, unit) - start)
            unit += 1
    v.put(pointer, v.get(word, w.LINES), unit)
    if unit != count:
        v.put(word, w.FAULT, 1)
