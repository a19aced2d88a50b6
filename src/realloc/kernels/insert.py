"""Ids into a bounded sketch, in buckets of four. One walk in the given order: an entry sees what came before."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from realloc.kernels import task as w
from realloc.kernels import vectors as v
from realloc.kernels.csr import part_of
from realloc.kernels.hashing import hashed, known

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
def _empty(keys: Any, first: int) -> int:
    """The first empty slot of a bucket, or -1."""
    for at in range(first, first + WAYS):
        if v.get(keys, at) < 0:
            return at
    return -1


@njit
def _add(into: Any, at: int, more: Any, i: int, width: int) -> None:
    """Row i of one array onto row ``at`` of another."""
    for j in range(width):
        v.put(into, at * width + j, v.get(into, at * width + j) + v.get(more, i * width + j))


def insert(task: Any) -> None:
    """SAMPLES entries into LINES buckets of WAYS slots, and into the UNITS shared rows of those without a row.

    The sketch: POINTER int64, the ids, -1 where empty; OTHER int32, the tables; ORDER int32, the rows, -1 without one;
    VALUES, the scores; SLIM, the part of these that is inherited; OUT, FEATURES sums each. OTHERS and OUT_STEP: scores
    and sums of the shared rows. The entries: X int64, ids; PANEL int32, tables; GRADIENT, gains; KEEP, sums. BIAS int64
    [X_STEP]: the salts of the tables. FAULT if there is no such table.
    """
    word = v.words(task)
    keys, tables = v.long_integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    rows, width = v.integers(v.get(word, w.ORDER)), v.get(word, w.FEATURES)
    scores, sums = v.numbers(task, v.get(word, w.VALUES)), v.numbers(task, v.get(word, w.OUT))
    inherited = v.numbers(task, v.get(word, w.SLIM))
    below, pulls = v.numbers(task, v.get(word, w.OTHERS)), v.numbers(task, v.get(word, w.OUT_STEP))
    ids, theirs = v.long_integers(v.get(word, w.X)), v.integers(v.get(word, w.PANEL))
    salts, known_tables = v.long_integers(v.get(word, w.BIAS)), v.get(word, w.X_STEP)
    gains, more = v.numbers(task, v.get(word, w.GRADIENT)), v.numbers(task, v.get(word, w.KEEP))
    buckets, shared = v.get(word, w.LINES), v.get(word, w.UNITS)
    for i in range(v.get(word, w.SAMPLES) if part_of(word)[0] == 0 else 0):
        key, table = v.get(ids, i), np.int64(v.get(theirs, i))
        if table < 0 or table >= known_tables:
            v.put(word, w.FAULT, 1)
            return
        row, bucket = hashed(key, v.get(salts, table), shared, buckets)
        first = bucket * WAYS
        at = known(keys, tables, key, table, first)
        if at < 0 or v.get(rows, at) < 0:
            v.put(below, row, v.get(below, row) + v.get(gains, i))
            _add(pulls, row, more, i, width)
        if at >= 0:
            v.put(scores, at, v.get(scores, at) + v.get(gains, i))
            _add(sums, at, more, i, width)
            continue
        base, at = np.float32(0), _empty(keys, first)
        if at < 0:
            at = _least(rows, scores, first)
            if at < 0:
                continue
            base = v.get(scores, at)
        v.put(keys, at, key)
        v.put(tables, at, np.int32(table))
        v.put(inherited, at, base)
        v.put(scores, at, base + v.get(gains, i))
        for j in range(width):
            v.put(sums, at * width + j, v.get(more, i * width + j))
