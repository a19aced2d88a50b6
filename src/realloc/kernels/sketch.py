"""A bounded sketch of importance: which ids it knows, in buckets of four slots, and how new ones come in."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from realloc.kernels import task as w
from realloc.kernels.mixing import MASK, mixed_plain
from realloc.kernels.team import run

WAYS: Final = 4  # slots of a bucket; as in kernels/insert.py, which only the compiler imports


@final
@dataclass(frozen=True, eq=False)
class Sketch:
    """The arrays of a sketch of B buckets, slot by slot, and of H shared rows, on the CPU.

    An empty slot has key -1 and score 0.
    """

    keys: Tensor  # int64 [4B]: ids, -1 where empty
    tables: Tensor  # int32 [4B]: the table that the id is of
    owned: Tensor  # int32 [4B]: the row that the id owns, -1 without one
    scores: Tensor  # float32 [4B]
    inherited: Tensor  # float32 [4B]: the part of a score that is of those who had the slot before
    sums: Tensor  # float32 [4B, p]
    shared_scores: Tensor  # float32 [H]: of all that read the row
    shared_sums: Tensor  # float32 [H, p]


@final
@dataclass(frozen=True, eq=False)
class Entries:
    """What goes into it, each (table, id) once."""

    ids: Tensor  # int64 [n], 0 and more
    tables: Tensor  # int32 [n]
    gains: Tensor  # float32 [n], 0 and more
    sums: Tensor  # float32 [n, p]


def insert(sketch: Sketch, entries: Entries, tables: int) -> None:
    """Add each entry to its slot, in place and in order; a newcomer replaces the least slot of its bucket.

    A known id adds its gain and its sums. A new one takes an empty slot; where there is none, that of the smallest
    score among those without a row, whose score it inherits (SpaceSaving, Metwally et al. 2005: a score is never below
    the true one, and above it by no more than what is inherited), with sums of its own. An id that owns a row is
    never evicted: where all four do, the newcomer is not noted. What an id without a row gains, its shared row gains.

    Args:
        sketch: written to.
        entries: in their order.
        tables: how many there are; their ids are hashed apart.

    Raises:
        StateError: an entry is of no table.
    """
    salts = _salts(tables)
    ids, theirs = entries.ids.contiguous(), entries.tables.contiguous()
    gains, sums = entries.gains.contiguous(), entries.sums.contiguous()
    words: w.Words = {
        w.POINTER: sketch.keys, w.OTHER: sketch.tables, w.ORDER: sketch.owned, w.VALUES: sketch.scores,
        w.SLIM: sketch.inherited, w.OUT: sketch.sums, w.FEATURES: sketch.sums.shape[1],
        w.LINES: sketch.keys.numel() // WAYS, w.OTHERS: sketch.shared_scores, w.OUT_STEP: sketch.shared_sums,
        w.UNITS: sketch.shared_scores.numel(), w.X: ids, w.PANEL: theirs, w.BIAS: salts, w.X_STEP: tables,
        w.GRADIENT: gains, w.KEEP: sums, w.SAMPLES: ids.numel(),
    }  # fmt: skip
    run("insert", torch.float32, words, 0)
    torch.autograd.graph.increment_version([t for t in vars(sketch).values() if t is not sketch.owned])


@functools.cache
def _salts(tables: int) -> Tensor:
    return torch.tensor([mixed_plain(table) for table in range(tables)], dtype=torch.int64)


def insert_plain(sketch: Sketch, entries: Entries, tables: int) -> None:
    """The same, slot by slot in Python. The plain reference."""
    for i, (key, table) in enumerate(zip(entries.ids.tolist(), entries.tables.tolist(), strict=True)):
        first = mixed_plain(key ^ mixed_plain(table))
        row = ((first & MASK) >> 1) % sketch.shared_scores.numel()
        bucket = ((mixed_plain(first) & MASK) >> 1) % (sketch.keys.numel() // WAYS)
        slots = range(bucket * WAYS, bucket * WAYS + WAYS)
        known = [at for at in slots if int(sketch.keys[at]) == key and int(sketch.tables[at]) == table]
        if not known or int(sketch.owned[known[0]]) < 0:
            sketch.shared_scores[row] += entries.gains[i]
            sketch.shared_sums[row] += entries.sums[i]
        if known:
            sketch.scores[known[0]] += entries.gains[i]
            sketch.sums[known[0]] += entries.sums[i]
            continue
        empty = [at for at in slots if int(sketch.keys[at]) < 0]
        cold = [at for at in slots if int(sketch.owned[at]) < 0]
        if not cold:
            continue
        at = empty[0] if empty else min(cold, key=lambda one: float(sketch.scores[one]))
        sketch.keys[at], sketch.tables[at] = key, table
        sketch.inherited[at] = 0 if empty else sketch.scores[at]
        sketch.scores[at] = sketch.inherited[at] + entries.gains[i]
        sketch.sums[at] = entries.sums[i]
