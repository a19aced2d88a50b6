"""The flat pool: one parameter ``(n, 1)`` that holds every slot of one budget.

Its length is the budget, so the budget cannot drift. Layers see views of it; a move changes which slot sits where.
Shapes never change, so neither the optimizer, nor DDP, nor a compiled graph notices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from threading import get_ident
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from realloc.errors import RecordError, StateError
from realloc.kernels.dispatch import choose_compute
from realloc.kernels.rows import places_of, write_rows
from realloc.kernels.team import DAMAGED
from realloc.sites.grid import Grid
from realloc.sites.packed import PackedSite

Situation = tuple[int, int, bool, bool]


@final
class FlatPool:
    """The slots of several packed sites. Everything it knows of their placement lives in buffers of ``owner``.

    Buffers, all of constant length (``n`` units in the pool, S sites):
        columns int32 [n]: column of each unit; parked units at the end, 0.
        rows int32 [sum(rows_k + 1)]: CSR row pointer of each site, from its own first unit.
        extents int64 [S + 1]: first unit of each site; the last entry is the number of held units.
        compute int8 [S]: 0 kernel, 1 scatter.
    """

    storage: ClassVar[str] = "packed"

    def __init__(self, owner: nn.Module, number: int, names: Sequence[str], grids: Sequence[Grid]) -> None:
        self.owner = owner
        self.number = number
        self.unit_size = grids[0].size
        self.sites = tuple(PackedSite(n, g, self, i) for i, (n, g) in enumerate(zip(names, grids, strict=True)))
        starts = [0]
        for grid in grids:
            starts.append(starts[-1] + grid.rows + 1)
        self._row_starts = tuple(starts)
        self.key = f"realloc_pool{number}"  # name of the parameter on the owner
        self._names = {part: f"realloc_{part}{number}" for part in ("columns", "rows", "extents", "compute", "born")}
        self._split: tuple[Situation, tuple[Tensor, ...]] | None = None
        self._depth = 0

    # where things are -------------------------------------------------------------------------------------------

    @property
    def parameter(self) -> nn.Parameter:
        """The values, ``(n, 1)``."""
        found = self.owner._parameters[self.key]
        assert found is not None
        return found

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """Names of the placement's buffers on the owner."""
        return tuple(name for part, name in self._names.items() if part != "born")

    def _buffer(self, part: str) -> Tensor:
        found = self.owner._buffers[self._names[part]]
        assert found is not None
        return found

    @property
    def columns(self) -> Tensor:
        """int32 [n units]."""
        return self._buffer("columns")

    @property
    def rows(self) -> Tensor:
        """int32 [sum(rows_k + 1)]."""
        return self._buffer("rows")

    @property
    def extents(self) -> Tensor:
        """int64 [S + 1]."""
        return self._buffer("extents")

    @property
    def compute(self) -> Tensor:
        """int8 [S]."""
        return self._buffer("compute")

    @property
    def born(self) -> Tensor | None:
        """int32 [n units], the step at which each unit was acquired; only where the method damps young units."""
        return self.owner._buffers.get(self._names["born"])

    # counts -----------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Units the pool has room for."""
        return self.parameter.shape[0] // self.unit_size

    @property
    def held(self) -> int:
        """Units held by sites now."""
        return int(self.extents[-1])

    def bounds(self, index: int) -> tuple[int, int]:
        """First and past-last unit of a site."""
        first, last = self.extents[index : index + 2].tolist()
        if not 0 <= first <= last <= self.capacity:
            raise StateError(DAMAGED)
        return first, last

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

    # views for the forward pass ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Split the pool once for a whole forward of the model; nested calls share the outer split."""
        self._depth += 1
        situation = self._situation()
        if self._depth == 1 or self._split is None or self._split[0] != situation:
            ends = [e * self.unit_size for e in self.extents.tolist()]
            sizes = [b - a for a, b in pairwise([*ends, self.parameter.shape[0]])]
            if ends[0] or min(sizes) < 0:
                raise StateError(DAMAGED)
            self._split = situation, torch.split(self.parameter, sizes)

    def _situation(self) -> Situation:
        """What a split is good for: these values, this thread, gradients on or off.

        An interrupt can leave a forward without its end, and threads share the model: a view made without gradients
        would swallow those of a training step.
        """
        parameter = self.parameter
        version = -1 if parameter.is_inference() else parameter._version
        gradients = torch.is_grad_enabled() and parameter.requires_grad
        return version, get_ident(), gradients, torch.is_inference_mode_enabled()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_split": None, "_depth": 0}

    def close(self) -> None:
        """Drop the split: one that outlives its forward breaks after a move."""
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._split = None

    def segment(self, index: int) -> tuple[Tensor, bool]:
        """Values of one site, and whether they are the whole pool (as a compiled graph wants it)."""
        if torch.compiler.is_compiling():
            return self.parameter, True
        split = self._split
        if split is not None and split[0] == self._situation():
            return split[1][index], False
        first, last = self.bounds(index)
        return self.parameter[first * self.unit_size : last * self.unit_size], False

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

    def unregister(self) -> None:
        """Take everything off the owner again."""
        del self.owner._parameters[self.key]
        for name in self._names.values():
            self.owner._buffers.pop(name, None)

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
