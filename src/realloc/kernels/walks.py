"""Indexes derived from a placement: by column, and by element for blocks. Never part of any saved state.

They are kept on the tap of a site beside a copy of the placement they were made from, and used only while that copy
is equal to the placement; so a move, a loaded checkpoint or a write by hand can never leave a wrong one in use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from realloc.errors import StateError
from realloc.kernels import task as w
from realloc.kernels.taps import find
from realloc.kernels.team import DAMAGED, run


@final
@dataclass(frozen=True, eq=False)
class Index:
    """Lines of a sparse matrix. int32 ``pointer [lines + 1]``, ``other [m]``, ``order [m]`` (None: as they come)."""

    pointer: Tensor
    other: Tensor
    order: Tensor | None


@final
@dataclass(frozen=True)
class Layout:
    """Shape of a site: a dense ``[out, in]`` cut into blocks of ``r x c``."""

    out_features: int
    in_features: int
    r: int
    c: int

    @property
    def whole_columns(self) -> bool:
        """Whether a unit is all the weights of one input."""
        return self.c == 1 and self.r == self.out_features > 1


@final
@dataclass(eq=False)
class Walk:
    """What was derived from one placement."""

    columns: Tensor
    rowptr: Tensor
    layout: Layout
    rows: Index
    by_column: Index | None = field(default=None)

    def fits(self, columns: Tensor, rowptr: Tensor, layout: Layout) -> bool:
        """Whether the placement is still the one this was made from."""
        return layout == self.layout and torch.equal(self.columns, columns) and torch.equal(self.rowptr, rowptr)


def by_rows(tap: int, columns: Tensor, rowptr: Tensor, layout: Layout) -> Index:
    """Rows of elements. For single weights this is the placement itself."""
    if layout.r * layout.c == 1:
        return Index(rowptr, columns, None)
    return _walk(tap, columns, rowptr, layout).rows


def by_columns(tap: int, columns: Tensor, rowptr: Tensor, layout: Layout) -> Index:
    """Columns of elements."""
    walk = _walk(tap, columns, rowptr, layout)
    if walk.by_column is None:
        walk.by_column = transposed(walk.rows, layout.in_features)
    return walk.by_column


def _walk(tap: int, columns: Tensor, rowptr: Tensor, layout: Layout) -> Walk:
    owner = find(tap)
    known: Walk | None = None if owner is None else owner.walk
    if known is not None and known.fits(columns, rowptr, layout):
        return known
    made = _make(columns, rowptr, layout)
    if owner is not None:
        owner.walk = made
    return made


def _make(columns: Tensor, rowptr: Tensor, layout: Layout) -> Walk:
    if rowptr.numel() != layout.out_features // layout.r + 1:
        raise StateError(DAMAGED)
    if columns.numel() * layout.r * layout.c >= 2**31:
        raise StateError(f"a site of {columns.numel() * layout.r * layout.c:,} weights: int32 indexes end at 2^31")
    columns, rowptr = columns.clone(), rowptr.clone()
    index = Index(rowptr, columns, None)
    if layout.r * layout.c > 1:
        check_rows(index, layout.in_features // layout.c)
        index = elements(index, layout)
    return Walk(columns, rowptr, layout, index)


def check_rows(index: Index, width: int) -> None:
    """Refuse a placement that was written by hand and does not fit its layer."""
    sound = int(index.pointer[0]) == 0 and int(index.pointer[-1]) == index.other.numel()
    if not sound or bool((index.pointer.diff() < 0).any()):
        raise StateError(DAMAGED)
    if index.other.numel() and not 0 <= int(index.other.min()) <= int(index.other.max()) < width:
        raise StateError(DAMAGED)


def elements(blocks: Index, layout: Layout) -> Index:
    """Rows of elements of rows of blocks; ``order`` says where each element lies in the values."""
    r, c = layout.r, layout.c
    count = blocks.pointer.diff()
    pointer = torch.cat([blocks.pointer.new_zeros(1), (count * c).repeat_interleave(r).cumsum(0, dtype=torch.int32)])
    unit = torch.arange(blocks.other.numel(), dtype=torch.int32)
    block_row = torch.repeat_interleave(torch.arange(count.numel()), count.long())
    # position of a unit's first element in element row i of its block row
    start = blocks.pointer[block_row].int() * (r * c) + (unit - blocks.pointer[block_row]) * c
    down = torch.arange(r, dtype=torch.int32)[None, :, None]
    right = torch.arange(c, dtype=torch.int32)[None, None, :]
    spot = (start[:, None, None] + down * (count[block_row] * c)[:, None, None] + right).flatten().long()
    other, order = torch.empty_like(spot, dtype=torch.int32), torch.empty_like(spot, dtype=torch.int32)
    other[spot] = (blocks.other[:, None, None] * c + right).expand(-1, r, c).flatten()
    order[spot] = (unit[:, None, None] * (r * c) + down * c + right).flatten()
    return Index(pointer, other, order)


def transposed(rows: Index, width: int) -> Index:
    """The same matrix by columns, each in the order of rows (a stable counting sort)."""
    units, chunks = rows.other.numel(), torch.get_num_threads()
    other, order = torch.empty_like(rows.other), torch.empty_like(rows.other)
    room = torch.zeros(chunks, width, dtype=torch.int32)
    words: w.Words = {
        w.POINTER: rows.pointer, w.OTHER: rows.other, w.ORDER: rows.order, w.LINES: rows.pointer.numel() - 1,
        w.FEATURES: width, w.SAMPLES: chunks, w.KEEP: units, w.X: other, w.PANEL: order, w.GRADIENT: room,
    }  # fmt: skip
    run("count", torch.float32, words, units)
    pointer = torch.zeros(width + 1, dtype=torch.int32)
    torch.cumsum(room.sum(0), 0, dtype=torch.int32, out=pointer[1:])
    starts = pointer[:-1] + room.cumsum(0, dtype=torch.int32) - room  # of each column in each range of rows
    run("place", torch.float32, {**words, w.GRADIENT: starts}, units)
    return Index(pointer, other, order)
