"""A pool of LoRA ranks: units of different cost under one budget in parameters. docs/adr/0012."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from realloc.errors import RecordError
from realloc.kernels.finite import all_finite
from realloc.kernels.gather import gather_slots
from realloc.pool.split import SplitPool, check_shapes
from realloc.rng import stream
from realloc.sites.rank import RankSite


@final
@dataclass(frozen=True)
class RankSeat:
    """One layer that may hold ranks: the name and shape ``(out, in)`` of its weight, the most ranks, the scale."""

    name: str
    shape: tuple[int, int]
    cap: int
    scale: float

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return sum(self.shape)


@final
class RankPool(SplitPool):
    """The slots of the ranks of several layers. Extents and capacity count slots, so that costs may differ.

    A site's segment is A ``[r, in]``, then B ``[r, out]``. Buffers on the owner, all of constant length:
        extents int64 [S + 1]: first slot of each site; the last entry is the number of held slots.
        ranks bool [sum of caps]: which ranks each site holds.
        scales float64 [S]: factor of each site; it never changes, and a state with another one is refused.
        sensitivity, uncertainty [n, 1]: running means by slot, only where the method asks; they follow their slot.
    """

    storage: ClassVar[str] = "rank"
    lasting = ("sensitivity", "uncertainty")
    placement: ClassVar[tuple[str, ...]] = ("extents", "ranks", "scales")

    def __init__(self, owner: nn.Module, number: int, seats: Sequence[RankSeat]) -> None:
        super().__init__(owner, number, self.placement + self.lasting)
        self.unit_size = 1
        self.budget = 0  # its part of what the method was given, whatever it has room for
        self.sites = tuple(RankSite(s.name, s.shape, s.cap, s.scale, self, i) for i, s in enumerate(seats))
        starts = [0]
        for seat in seats:
            starts.append(starts[-1] + seat.cap)
        self._starts = tuple(starts)

    def places(self, index: int) -> Tensor:
        """Sorted int64 places of one site."""
        held = self._buffer("ranks")[self._starts[index] : self._starts[index + 1]]
        return held.nonzero().flatten()

    @property
    def means(self) -> tuple[Tensor, Tensor] | None:
        """Running means of the sensitivity and of its spread, ``(n, 1)`` each."""
        buffers = [self.owner._buffers.get(self._names[part]) for part in self.lasting]
        return None if buffers[0] is None or buffers[1] is None else (buffers[0], buffers[1])

    # writing ----------------------------------------------------------------------------------------------------

    def register(self, values: Tensor, means: bool) -> None:
        """Put the parameter ``(n, 1)`` and empty buffers on the owner."""
        device, sites = values.device, len(self.sites)
        self.owner.register_parameter(self.key, nn.Parameter(values))
        self.owner.register_buffer(self._names["extents"], torch.zeros(sites + 1, dtype=torch.int64, device=device))
        held = torch.zeros(self._starts[-1], dtype=torch.bool, device=device)
        self.owner.register_buffer(self._names["ranks"], held)
        scales = torch.tensor([site.scale for site in self.sites], dtype=torch.float64, device=device)
        self.owner.register_buffer(self._names["scales"], scales)
        for part in self.lasting if means else ():
            self.owner.register_buffer(self._names[part], torch.zeros_like(values))

    def write(self, places: Sequence[Tensor]) -> None:
        """Write the placement: one sorted int64 tensor of places for each site. In place, lengths unchanged."""
        ranks, extents = self._buffer("ranks"), [0]
        ranks.zero_()
        for index, (site, held) in enumerate(zip(self.sites, places, strict=True)):
            ranks[self._starts[index] + held] = True
            extents.append(extents[-1] + held.numel() * site.grid.size)
        self.extents.copy_(torch.tensor(extents))

    def source(self, moves: Sequence[Tensor]) -> Tensor:
        """The gather of a move, int64 ``[n]``.

        Args:
            moves: for each site, which of its ranks (counted from 0 in slot order) each rank was before; -1: new.
        """
        pieces = []
        for index, (site, old) in enumerate(zip(self.sites, moves, strict=True)):
            first, last = self.bounds(index)
            fan_out, fan_in = site.shape
            begin_b = first + (last - first) // site.grid.size * fan_in
            for begin, width in ((first, fan_in), (begin_b, fan_out)):
                slots = begin + old[:, None] * width + torch.arange(width, device=old.device)
                pieces.append(torch.where(old[:, None] < 0, -1, slots).flatten())
        held = sum(piece.numel() for piece in pieces)
        return torch.cat([*pieces, pieces[0].new_full((self.capacity - held,), -1)]).to(self.parameter.device)

    def measure(self, betas: tuple[float, float]) -> None:
        """Take the sensitivity ``|w g|`` of this step into the running means (AdaLoRA, 2303.10512, equations 9 and 10).

        The gradient is that of the step, the value that after it, as in peft. NaN and Inf are left out.
        """
        means, gradient = self.means, self.parameter.grad
        if means is None or gradient is None or not all_finite(gradient):
            return
        with torch.no_grad():
            now = (self.parameter * gradient).abs_()
            means[0].lerp_(now, 1 - betas[0])
            means[1].lerp_(now.sub_(means[0]).abs_(), 1 - betas[1])

    def follow(self, source: Tensor) -> None:
        """Let the running means follow the gather of a move; a new slot's begin at zero."""
        means = self.means
        if means is not None:
            gather_slots([(means[0], 0.0), (means[1], 0.0)], source)


def new_rows(count: int, fan_in: int, seed: int, site: str, step: int) -> Tensor:
    """``[count, in]``: rows of A for new ranks, uniform within ``1 / sqrt(in)``: Kaiming's, a = sqrt(5)."""
    drawn = torch.rand(count, fan_in, generator=stream(seed, "rank", site, step))
    return (2 * drawn - 1) / math.sqrt(fan_in)


def check_ranks(pool: RankPool, state: dict[str, Tensor], prefix: str, compacted: bool) -> None:
    """Refuse ranks from outside that do not fit. A ``compacted`` pool may be shorter.

    Raises:
        RecordError: wrong length or dtype, another scale, or ranks and extents that do not fit. Nothing was copied.
    """
    length = check_shapes(pool, state, prefix, compacted, "method, budget, cap and layers")
    extents, held, scales = (state[prefix + name].cpu() for name in pool.buffer_names)
    for index, site in enumerate(pool.sites):
        if float(scales[index]) != site.scale:
            raise RecordError(f"{site.name}: scale {float(scales[index])} in the state, {site.scale} here")
        count = int(held[pool._starts[index] : pool._starts[index + 1]].sum())
        if int(extents[index + 1]) - int(extents[index]) != count * site.grid.size:
            raise RecordError(f"{site.name}: its segment does not fit its {count} ranks of {site.grid.size} slots")
    if int(extents[0]) != 0 or int(extents[-1]) > length:
        raise RecordError(f"{prefix}{pool.buffer_names[0]}: extents are not ascending within the pool")
