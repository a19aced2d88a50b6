"""Pools of widths: dense parameters whose shapes follow the widths of groups, laid one after another. docs/adr/0025."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from realloc.allocate.width_costs import Axis, Currency, Space
from realloc.errors import RecordError
from realloc.kernels.gather import gather_slots, to_slots
from realloc.pool.names import FIRST
from realloc.pool.split import SplitPool, check_shapes
from realloc.sites.wide import WideSite

RUNNING = ("running_mean", "running_var")


@final
class WidePool(SplitPool):
    """The slots of several parameters of one space. Their order never changes, their extents follow the widths.

    Buffers on the owner, all of constant length:
        extents int64 [S + 1]: first slot of each site; the last entry is the number of held slots.
        widths int64 [G]: units that each group holds; every pool of a space has the same.
        worth float64, born int64 [sum of most]: by unit, summed worth and the step a unit came at, in the first pool.
        running_mean, running_var [n, 1]: of norms, at the slots of their weights; they follow their slot.
    """

    storage: ClassVar[str] = "wide"
    lasting = RUNNING
    placement: ClassVar[tuple[str, ...]] = ("extents", "widths")
    by_unit: ClassVar[tuple[str, ...]] = ("worth", "born")

    def __init__(
        self,
        owner: nn.Module,
        number: int,
        space: Space,
        members: Sequence[int],
        start: Sequence[int],
        currency: Currency,
        prefix: str = FIRST,
    ) -> None:
        super().__init__(owner, number, self.placement + self.by_unit + self.lasting, prefix)
        self.unit_size = 1
        self.space = space
        self.currency = currency
        self.start = tuple(start)
        self.sites = tuple(WideSite(space.members[m], self.start, self, i) for i, m in enumerate(members))
        self.taps = tuple(site.tap for site in self.sites)
        self._known: tuple[Tensor, int, tuple[int, ...]] | None = None  # the buffer, its version, what it held
        self._shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Units that each group holds."""
        buffer = self._buffer("widths")
        version = -1 if buffer.is_inference() else buffer._version
        known = self._known
        if known is None or version < 0 or known[0] is not buffer or known[1] != version:
            known = self._known = buffer, version, tuple(buffer.tolist())
            self._shapes = tuple(site.member.shape(known[2]) for site in self.sites)
        return known[2]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of its parameters now."""
        _ = self.widths  # which brings them up to date
        return self._shapes

    def running(self, part: str, index: int) -> Tensor:
        """A running statistic of a norm, by its weight's site: a view of the buffer."""
        first, last = self.bounds(index)
        return self._buffer(part)[first:last, 0]

    def units(self, part: str) -> tuple[Tensor, ...]:
        """``worth`` or ``born`` of the units of each group: views, in the first pool of a space."""
        first, found = 0, []
        for width, most in zip(self.widths, self.space.most, strict=True):
            found.append(self._buffer(part)[first : first + width])
            first += most
        return tuple(found)

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_known": None}

    # writing ----------------------------------------------------------------------------------------------------

    def register(self, values: Tensor, statistics: Tensor | None) -> None:
        """Put the parameter ``(n, 1)`` and buffers on the owner. ``statistics`` ``(n, 2)``: running mean, variance."""
        device, owner = values.device, self.owner
        owner.register_parameter(self.key, nn.Parameter(values))
        counts = {"extents": len(self.sites) + 1, "widths": len(self.space.groups)}
        for part, length in counts.items():
            owner.register_buffer(self._names[part], torch.zeros(length, dtype=torch.int64, device=device))
        if self.number == 0:
            for part, dtype in (("worth", torch.float64), ("born", torch.int64)):
                zeros = torch.zeros(sum(self.space.most), dtype=dtype, device=device)
                owner.register_buffer(self._names[part], zeros)
        if statistics is not None:
            for part, column in zip(RUNNING, statistics.unbind(1), strict=True):
                owner.register_buffer(self._names[part], column[:, None].clone())

    def write(self, widths: Sequence[int]) -> None:
        """Write the placement. In place, lengths unchanged."""
        extents = [0]
        for site in self.sites:
            extents.append(extents[-1] + site.member.parameters(widths))
        self.extents.copy_(torch.tensor(extents))
        self._buffer("widths").copy_(torch.tensor(list(widths)))

    def source(self, units: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
        """The gather of a move, int64 ``[n]``.

        Args:
            units: for each group, which unit each of its units was before; -1: new.
            widths: of before.
        """
        pieces, held = [], 0
        for site in self.sites:
            member, (first, _) = site.member, self.bounds(site.index)
            rows = entries(member.rows, units)
            inner = torch.zeros(1, dtype=torch.int64)
            step = 1
            if member.columns is not None:
                tail = prod(member.tail)
                inner = to_slots(entries(member.columns, units), tail)
                step = member.columns.size(widths) * tail
            slots = first + rows[:, None] * step + inner
            piece = torch.where((rows[:, None] < 0) | (inner < 0), -1, slots).flatten()
            pieces.append(piece)
            held += piece.numel()
        return torch.cat([*pieces, torch.full((self.capacity - held,), -1)]).to(self.parameter.device)

    def fills(self, widths: Sequence[int]) -> Tensor:
        """What new slots start with, ``[n]``: 0, and 1 for the factor of a norm."""
        values = torch.zeros(self.capacity, dtype=self.parameter.dtype, device=self.parameter.device)
        first = 0
        for site in self.sites:
            last = first + site.member.parameters(widths)
            values[first:last] = site.member.fill
            first = last
        return values

    def follow(self, source: Tensor, units: Sequence[Tensor]) -> None:
        """Let running statistics follow the gather of a move, and what is known of units follow the units."""
        for part, start in zip(RUNNING, (0.0, 1.0), strict=True):
            buffer = self.owner._buffers.get(self._names[part])
            if buffer is not None:
                gather_slots([(buffer, start)], source)
        for part in self.by_unit if self.number == 0 else ():
            first = 0
            for old, most in zip(units, self.space.most, strict=True):
                mine = self._buffer(part)[first : first + most]
                here = old.to(mine.device)
                new = torch.where(here < 0, 0, mine[here.clamp(min=0)])
                mine.zero_()
                mine[: len(new)] = new.to(mine.dtype)
                first += most

    def forget(self) -> None:
        """The sums of worth begin anew."""
        for worth in self.units("worth") if self.number == 0 else ():
            worth.zero_()

    def come(self, units: Sequence[Tensor], step: int) -> None:
        """Write the step at which new units came, after the placement."""
        for born, old in zip(self.units("born"), units, strict=True) if self.number == 0 else ():
            born[(old < 0).to(born.device)] = step


def entries(axis: Axis, units: Sequence[Tensor]) -> Tensor:
    """Which entry along an axis each entry was before, from the units of every group; -1: new."""
    if axis.group is None:
        return torch.arange(axis.block)
    return to_slots(units[axis.group].cpu(), axis.block)


def check_widths(pool: WidePool, state: dict[str, Tensor], prefix: str, compacted: bool) -> None:
    """Refuse widths from outside that do not fit. A ``compacted`` pool may be shorter.

    Raises:
        RecordError: wrong length or dtype, a width outside its bounds, or extents that do not fit. Nothing was copied.
    """
    names = [n for part in pool.by_unit if (n := pool._names[part]) in pool.owner._buffers]
    length = check_shapes(pool, state, prefix, compacted, "method, widths and layers", names)
    extents, widths = (state[prefix + name].cpu() for name in pool.buffer_names)
    bounds = zip(pool.space.groups, widths.tolist(), pool.space.least, pool.space.most, strict=True)
    for name, width, least, most in bounds:
        if not least <= width <= most:
            raise RecordError(f"{name}: {width} units in the state, {least} to {most} fit here")
    sizes = [site.member.parameters(widths.tolist()) for site in pool.sites]
    if int(extents[0]) != 0 or extents.diff().tolist() != sizes or int(extents[-1]) > length:
        raise RecordError(f"{prefix}{pool.buffer_names[0]}: extents do not fit the widths")
