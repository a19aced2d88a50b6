"""A bounded sketch of importance: which ids it knows, in buckets of four slots, and how new ones come in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from realloc.kernels import task as w
from realloc.kernels.team import run

WAYS: Final = 4  # slots of a bucket; as in kernels/insert.py, which only the compiler imports


@final
@dataclass(frozen=True, eq=False)
class Sketch:
    """The arrays of a sketch of B buckets, slot by slot, on the CPU. An empty slot has key -1 and score 0."""

    keys: Tensor  # int64 [4B]: ids, -1 where empty
    tables: Tensor  # int32 [4B]: the table that the id is of
    rows: Tensor  # int32 [4B]: the row that the id owns, -1 without one
    scores: Tensor  # float32 [4B]
    sums: Tensor  # float32 [4B, p]


@final
@dataclass(frozen=True, eq=False)
class Entries:
    """What goes into it, each (table, id) once."""

    ids: Tensor  # int64 [n], 0 and more
    tables: Tensor  # int32 [n]
    buckets: Tensor  # int64 [n]
    gains: Tensor  # float32 [n], 0 and more
    sums: Tensor  # float32 [n, p]


def insert(sketch: Sketch, entries: Entries) -> None:
    """Add each entry to its slot, in place and in order; a newcomer replaces the least slot of its bucket.

    A known id adds its gain and its sums. A new one takes an empty slot; where there is none, that of the smallest
    score among those without a row, whose score it inherits (SpaceSaving, Metwally et al. 2005: a score is never below
    the true one, and above it by no more than the least of the bucket), with sums of its own. An id that owns a row is
    never evicted: where all four do, the newcomer is not noted.

    Raises:
        StateError: a bucket lies outside the sketch.
    """
    buckets = sketch.keys.numel() // WAYS
    words: w.Words = {
        w.POINTER: sketch.keys, w.OTHER: sketch.tables, w.ORDER: sketch.rows, w.VALUES: sketch.scores,
        w.OUT: sketch.sums, w.FEATURES: sketch.sums.shape[1], w.LINES: buckets,
        w.X: entries.ids.contiguous(), w.PANEL: entries.tables.contiguous(), w.BIAS: entries.buckets.contiguous(),
        w.GRADIENT: entries.gains.contiguous(), w.KEEP: entries.sums.contiguous(), w.SAMPLES: entries.ids.numel(),
    }  # fmt: skip
    run("insert", torch.float32, words, 0)
    for written in (sketch.keys, sketch.tables, sketch.scores, sketch.sums):
        torch.autograd.graph.increment_version(written)


def insert_plain(sketch: Sketch, entries: Entries) -> None:
    """The same, slot by slot in Python. The plain reference."""
    for i, (key, table, bucket) in enumerate(
        zip(entries.ids.tolist(), entries.tables.tolist(), entries.buckets.tolist(), strict=True)
    ):
        slots = range(bucket * WAYS, bucket * WAYS + WAYS)
        known = [at for at in slots if int(sketch.keys[at]) == key and int(sketch.tables[at]) == table]
        if known:
            sketch.scores[known[0]] += entries.gains[i]
            sketch.sums[known[0]] += entries.sums[i]
            continue
        empty = [at for at in slots if int(sketch.keys[at]) < 0]
        cold = [at for at in slots if int(sketch.rows[at]) < 0]
        if not cold:
            continue
        at = empty[0] if empty else min(cold, key=lambda one: float(sketch.scores[one]))
        sketch.keys[at], sketch.tables[at] = key, table
        sketch.scores[at] = entries.gains[i] if empty else sketch.scores[at] + entries.gains[i]
        sketch.sums[at] = entries.sums[i]
