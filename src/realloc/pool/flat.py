"""The flat pool: one parameter ``(n, 1)`` that holds every slot of one budget.

Its length is the budget, so the budget cannot drift. Layers see views of it; a move changes which slot sits where.
Shapes never change, so neither the optimizer, nor DDP, nor a compiled graph notices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from realloc.errors import RecordError
from realloc.kernels.dispatch import choose_compute
from realloc.kernels.rows import places_of, write_rows
from realloc.pool.names import FIRST
from realloc.pool.split import SplitPool
from realloc.sites.grid import Grid
from realloc.sites.packed import PackedSite, Stored


@final
class FlatPool(SplitPool):
    """The slots of several packed sites. Everything it knows of their placement lives in buffers of ``owner``.

    Buffers, all of constant length (``n`` units in the pool, S sites):
        columns int32 [n]: column of each unit; parked units at the end, 0.
        rows int32 [sum(rows_k + 1)]: CSR row pointer of each site, from its own first unit.
        extents int64 [S + 1]: first unit of each site; the last entry is the number of held units.
        compute int8 [S]: 0 kernel, 1 scatter.
    """

    placement: ClassVar[tuple[str, ...]] = ("columns", "rows", "extents", "compute")
    lasting = ("columns", "born")

    def __init__(
        self,
        owner: nn.Module,
        number: int,
        names: Sequence[str],
        grids: Sequence[Grid],
        storage: Stored = "packed",
        prefix: str = FIRST,
    ) -> None:
        super().__init__(owner, number, (*self.placement, "born"), prefix)
        self.storage = storage
        self.unit_size = grids[0].size
        seats = enumerate(zip(names, grids, strict=True))
        self.sites = tuple(PackedSite(name, grid, self, i, storage) for i, (name, grid) in seats)
        starts = [0]
        for grid in grids:
            starts.append(starts[-1] + grid.rows + 1)
        self._row_starts = tuple(starts)

    # where things are -------------------------------------------------------------------------------------------

    @property
    def columns(self) -> Tensor:
        """int32 [n units]."""
        return self._buffer("columns")

    @property
    def rows(self) -> Tensor:
        """int32 [sum(rows_k + 1)]."""
        return self._buffer("rows")

    @property
    def compute(self) -> Tensor:
        """int8 [S]."""
        return self._buffer("compute")

    @property
    def born(self) -> Tensor | None:
        """int32 [n units], the step at which each unit was acquired; only where the method damps young units."""
        return self.owner._buffers.get(self._names["born"])

    def row_pointer(self, index: int) -> Tensor:
        """int32 [rows + 1], a view."""
        return self.rows[self._row_starts[index] : self._row_starts[index + 1]]

    def places(self, index: int) -> Tensor:
        """Sorted int64 places of one site."""
        first, last = self.bounds(index)
        return places_of(self.row_pointer(index), self.columns[first:last], self.sites[index].grid.columns)

    def slots(self, flat: Tensor, index: int) -> Tensor:
        """``[units, size]``: the part of a pool-shaped tensor that belongs to one site, as a view."""
        first, last = self.bounds(index)
        size = self.unit_size
        return flat[first * size : last * size].view(-1, size)

    # writing a placement ----------------------------------------------------------------------------------------

    def register(self, values: Tensor, ages: bool) -> None:
        """Put the parameter and empty placement buffers on the owner; ``values`` is ``(n, 1)``."""
        device, units = values.device, values.shape[0] // self.unit_size
        self.owner.register_parameter(self.key, nn.Parameter(values))
        shapes = {"columns": units, "rows": self._row_starts[-1], "extents": len(self.sites) + 1}
        for part, length in shapes.items():
            dtype = torch.int64 if part == "extents" else torch.int32
            self.owner.register_buffer(self._names[part], torch.zeros(length, dtype=dtype, device=device))
        compute = torch.zeros(len(self.sites), dtype=torch.int8, device=device)
        self.owner.register_buffer(self._names["compute"], compute)
        if ages:
            born = torch.zeros(units, dtype=torch.int32, device=device)
            self.owner.register_buffer(self._names["born"], born)

    def write(self, places: Sequence[Tensor]) -> None:
        """Write the placement: one sorted int64 tensor of places for each site. In place, lengths unchanged."""
        first, extents, choices = 0, [0], []
        for index, (site, held) in enumerate(zip(self.sites, places, strict=True)):
            last = first + held.numel()
            write_rows(held, site.grid.columns, self.row_pointer(index), self.columns[first:last])
            density = held.numel() / max(1, site.grid.units)
            block = (site.grid.r, site.grid.c)
            choices.append(choose_compute(self.parameter.device, self.parameter.dtype, density, block))
            extents.append(last)
            first = last
        self.columns[first:] = 0
        self.extents.copy_(torch.tensor(extents))
        self.compute.copy_(torch.tensor(choices))


def check_placement(pool: FlatPool, state: dict[str, Tensor], prefix: str, compacted: bool) -> None:
    """Refuse a placement from outside that a kernel must not read. A ``compacted`` one may be shorter than the pool.

    Raises:
        RecordError: wrong length, dtype, order, or an index outside its matrix. Nothing has been copied yet.
    """
    found = {}
    for name in (*pool.buffer_names, pool.key):
        found[name] = state[prefix + name]
        mine = pool.owner._parameters[name] if name == pool.key else pool.owner._buffers[name]
        assert mine is not None
        cut = compacted and name in (pool.key, pool.buffer_names[0]) and found[name].ndim > 0
        shape = (min(len(found[name]), len(mine)), *mine.shape[1:]) if cut else mine.shape
        if found[name].shape != shape or (name != pool.key and found[name].dtype != mine.dtype):
            raise RecordError(
                f"{prefix + name}: {tuple(found[name].shape)} {found[name].dtype} in the state, "
                f"{tuple(mine.shape)} {mine.dtype} here; make the model with the same density and layers"
            )
    columns, rows, extents, compute = (found[n].cpu() for n in pool.buffer_names)
    room = len(columns)
    if len(found[pool.key]) != room * pool.unit_size:
        raise RecordError(f"{prefix}{pool.key}: values and columns do not fit together; the state was cut")
    if int(extents[0]) != 0 or bool((extents.diff() < 0).any()) or int(extents[-1]) > room:
        raise RecordError(f"{prefix}{pool.buffer_names[2]}: extents are not ascending within the pool")
    if bool(((compute != 0) & (compute != 1)).any()):
        raise RecordError(f"{prefix}{pool.buffer_names[3]}: unknown compute choice")
    for index, site in enumerate(pool.sites):
        pointer = rows[pool._row_starts[index] : pool._row_starts[index + 1]]
        first, last = int(extents[index]), int(extents[index + 1])
        if int(pointer[0]) != 0 or bool((pointer.diff() < 0).any()) or int(pointer[-1]) != last - first:
            raise RecordError(f"{site.name}: row pointer does not fit its {last - first} units")
        mine = columns[first:last].long()
        if mine.numel() and (int(mine.min()) < 0 or int(mine.max()) >= site.grid.columns):
            raise RecordError(f"{site.name}: a column lies outside 0..{site.grid.columns - 1}")
        row = torch.repeat_interleave(torch.arange(site.grid.rows), pointer.long().diff())
        if bool(((row * site.grid.columns + mine).diff() <= 0).any()):
            raise RecordError(f"{site.name}: places are not sorted, or one is held twice")
