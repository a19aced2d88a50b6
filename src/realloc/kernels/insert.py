"""Ids into a bounded sketch, in buckets of four. One walk in the given order: an entry sees what came before."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from realloc.kernels import task as w
from realloc.kernels import vectors as v
from realloc.kernels.csr import part_of

WAYS: Final = 4


@njit
def _least(rows: Any, scores: Any, first: int) -> int:
    """The slot of the smallest score among those of a bucket without a row, the lower of two; -1 if all have one."""
    found = -1
    for at in range(first, first + WAYS):
        if v.get(rows, at) < 0 and (found < 0 or v.get(scores, at) < v.get(scores, found)):
            found = at
    return found


@njit
def _known(keys: Any, tables: Any, key: Any, table: Any, first: int) -> int:
    """The slot of a key in its bucket, or -1."""
    for at in range(first, first + WAYS):
        if v.get(keys, at) == key and v.get(tables, at) == table:
            return at
    return -1


@njit
def _empty(keys: Any, first: int) -> int:
    """The first empty slot of a bucket, or -1."""
    for at in range(first, first + WAYS):
        if v.get(keys, at) < 0:
            return at
    return -1


def insert(task: Any) -> None:
    """SAMPLES entries into LINES buckets of WAYS slots.

    The sketch: POINTER int64, the ids, -1 where empty; OTHER int32, the tables; ORDER int32, the rows, -1 without one;
    VALUES, the scores; OUT, FEATURES sums each. The entries: X int64, ids; PANEL int32, tables; BIAS int64, buckets;
    GRADIENT, gains; KEEP, sums. FAULT if a bucket lies outside.
    """
    word = v.words(task)
    keys, tables = v.long_integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    rows, width = v.integers(v.get(word, w.ORDER)), v.get(word, w.FEATURES)
    scores, sums = v.numbers(task, v.get(word, w.VALUES)), v.numbers(task, v.get(word, w.OUT))
    ids, theirs = v.long_integers(v.get(word, w.X)), v.integers(v.get(word, w.PANEL))
    buckets = v.long_integers(v.get(word, w.BIAS))
    gains, more = v.numbers(task, v.get(word, w.GRADIENT)), v.numbers(task, v.get(word, w.KEEP))
    for i in range(v.get(word, w.SAMPLES) if part_of(word)[0] == 0 else 0):
        bucket = v.get(buckets, i)
        if bucket < 0 or bucket >= v.get(word, w.LINES):
            v.put(word, w.FAULT, 1)
            return
        first = bucket * WAYS
        at = _known(keys, tables, v.get(ids, i), v.get(theirs, i), first)
        if at >= 0:
            v.put(scores, at, v.get(scores, at) + v.get(gains, i))
            for j in range(width):
                v.put(sums, at * width + j, v.get(sums, at * width + j) + v.get(more, i * width + j))
            continue
        base, at = v.get(gains, i), _empty(keys, first)
        if at < 0:
            at = _least(rows, scores, first)
            if at < 0:
                continue
            base += v.get(scores, at)
        v.put(keys, at, v.get(ids, i))
        v.put(tables, at, np.int32(v.get(theirs, i)))
        v.put(scores, at, base)
        for j in range(width):
            v.put(sums, at * width + j, v.get(more, i * width + j))
