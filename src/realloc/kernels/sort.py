"""Counting sort of a CSR index into columns; search of sorted numbers in sorted numbers."""

from __future__ import annotations

from typing import Any

from realloc.kernels import task as w
from realloc.kernels import vectors as v


def count_sort(task: Any) -> None:
    """POINTER, OTHER, ORDER (rows) into OUT (pointer, zeros before), X (row of each), PANEL (order); GRADIENT: room."""
    word = v.words(task)
    lines, width = v.get(word, w.LINES), v.get(word, w.FEATURES)
    rowptr, columns = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    inner, ordered = v.integers(v.get(word, w.ORDER)), v.get(word, w.ORDER) != 0
    pointer, other = v.integers(v.get(word, w.OUT)), v.integers(v.get(word, w.X))
    order, spot = v.integers(v.get(word, w.PANEL)), v.integers(v.get(word, w.GRADIENT))
    for unit in range(v.get(rowptr, lines)):
        column = v.get(columns, unit)
        v.put(pointer, column + 1, v.get(pointer, column + 1) + 1)
    for column in range(width):
        v.put(spot, column, v.get(pointer, column))
        v.put(pointer, column + 1, v.get(pointer, column + 1) + v.get(pointer, column))
    for row in range(lines):
        for unit in range(v.get(rowptr, row), v.get(rowptr, row + 1)):
            column = v.get(columns, unit)
            to = v.get(spot, column)
            v.put(spot, column, to + 1)
            v.put(other, to, row)
            v.put(order, to, v.get(inner, unit) if ordered else unit)


def locate(task: Any) -> None:
    """OUT[i]: how many of POINTER int64 [LINES] lie below OTHER[i], int64 [SAMPLES]; both ascending, one walk."""
    word = v.words(task)
    held, count = v.long_integers(v.get(word, w.POINTER)), v.get(word, w.LINES)
    queries, out = v.long_integers(v.get(word, w.OTHER)), v.long_integers(v.get(word, w.OUT))
    at = 0
    for i in range(v.get(word, w.SAMPLES)):
        query = v.get(queries, i)
        while at < count and v.get(held, at) < query:
            at += 1
        v.put(out, i, at)
