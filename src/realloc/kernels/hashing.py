"""Ids into rows, and the gradients of a look-up by id: each is one walk over a batch."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from realloc.kernels import task as w
from realloc.kernels import vectors as v
from realloc.kernels.csr import even, part_of
from realloc.kernels.sets import mixed

WAYS: Final = 4


@njit
def hashed(key: Any, salt: Any, shared: int, buckets: int) -> tuple[Any, Any]:
    """The shared row and the bucket of an id, as `Rows.hashed` computes them; bucket 0 where there is none."""
    golden, one = np.uint64(0x9E3779B97F4A7C15), np.uint64(1)
    first = mixed(np.uint64(key ^ salt) + golden)
    second = mixed(first + golden)
    return np.int64((first >> one) % np.uint64(shared)), np.int64((second >> one) % np.uint64(max(1, buckets)))


@njit
def known(keys: Any, tables: Any, key: Any, table: Any, first: int) -> int:
    """The slot of an id in its bucket, or -1."""
    for at in range(first, first + WAYS):
        if v.get(keys, at) == key and v.get(tables, at) == table:
            return at
    return -1


def seek(task: Any) -> None:
    """OUT[i]: the row that X[i] reads, both int64 [SAMPLES]. FAULT at the first id below 0.

    PANEL: the number of their table, BIAS: its salt. LINES buckets (0: none), UNITS shared rows, the sketch as in
    `insert`: POINTER keys, OTHER tables, ORDER rows.
    """
    word = v.words(task)
    keys, tables = v.long_integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    owned, table = v.integers(v.get(word, w.ORDER)), v.get(word, w.PANEL)
    buckets, shared, salt = v.get(word, w.LINES), v.get(word, w.UNITS), v.get(word, w.BIAS)
    ids, out = v.long_integers(v.get(word, w.X)), v.long_integers(v.get(word, w.OUT))
    part, parts = part_of(word)
    start, stop = even(v.get(word, w.SAMPLES), part, parts)
    for i in range(start, stop):
        key = v.get(ids, i)
        if key < 0:
            v.put(word, w.FAULT, 1)
            return
        row, bucket = hashed(key, salt, shared, buckets)
        if buckets:
            at = known(keys, tables, key, table, bucket * WAYS)
            if at >= 0 and v.get(owned, at) >= 0:
                row = np.int64(v.get(owned, at))
        v.put(out, i, row)


def pair(task: Any) -> None:
    """OUT int64 [2, SAMPLES]: two of UNITS rows for each id X int64 [SAMPLES], by the salt BIAS. FAULT as in `seek`."""
    word = v.words(task)
    count, units, salt = v.get(word, w.SAMPLES), v.get(word, w.UNITS), v.get(word, w.BIAS)
    ids, out = v.long_integers(v.get(word, w.X)), v.long_integers(v.get(word, w.OUT))
    part, parts = part_of(word)
    start, stop = even(count, part, parts)
    for i in range(start, stop):
        key = v.get(ids, i)
        if key < 0:
            v.put(word, w.FAULT, 1)
            return
        first, second = hashed(key, salt, units, units)
        v.put(out, i, first)
        v.put(out, count + i, second)


def tally(task: Any) -> None:
    """Occurrences by id, in the order of their first ones; ids below 0 are left out.

    X int64 [SAMPLES]: ids; GRADIENT [SAMPLES, FEATURES]: the gradient of each. OUT int64 [SAMPLES + 1]: each id once,
    and at its end how many there are. VALUES float64 [SAMPLES, 2 + KEEP]: of each id how often it came,
    the norms of its gradients, and where KEEP is FEATURES, not 0, their sum. ORDER int32 [LINES], LINES a power of two
    above SAMPLES: room for a table of them.
    """
    word = v.words(task)
    count, width, keep = v.get(word, w.SAMPLES), v.get(word, w.FEATURES), v.get(word, w.KEEP)
    ids, gradient = v.long_integers(v.get(word, w.X)), v.numbers(task, v.get(word, w.GRADIENT))
    out, values = v.long_integers(v.get(word, w.OUT)), v.doubles(v.get(word, w.VALUES))
    room, mask = v.integers(v.get(word, w.ORDER)), v.get(word, w.LINES) - 1
    if part_of(word)[0] != 0:
        return
    for line in range(mask + 1):
        v.put(room, line, np.int32(-1))
    found: Any = 0
    for i in range(count):
        key = v.get(ids, i)
        if key < 0:
            continue
        at: Any = np.int64(mixed(np.uint64(key)) & np.uint64(mask))
        while v.get(room, at) >= 0 and v.get(out, v.get(room, at)) != key:
            at = (at + 1) & mask
        place: Any = np.int64(v.get(room, at))
        if place < 0:
            place = found
            v.put(room, at, np.int32(place))
            v.put(out, place, key)
            for j in range(2 + keep):
                v.put(values, place * (2 + keep) + j, 0.0)
            found += 1
        base, square = place * (2 + keep), 0.0
        for j in range(width):
            one = np.float64(v.get(gradient, i * width + j))
            square += one * one
        for j in range(keep):
            add = np.float64(v.get(gradient, i * width + j))
            v.put(values, base + 2 + j, v.get(values, base + 2 + j) + add)
        v.put(values, base, v.get(values, base) + 1.0)
        v.put(values, base + 1, v.get(values, base + 1) + np.sqrt(square))
    v.put(out, count, found)
