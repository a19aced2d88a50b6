"""The budget as masks over dense parameters: for convolutions, optimizers that are not elementwise, any module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from realloc.errors import RecordError
from realloc.pool.names import FIRST
from realloc.sites.grid import Grid
from realloc.sites.masked import MaskedSite


@final
class MaskedPool:
    """The masked sites of one model: one budget of units, one bool buffer on ``owner`` for each site."""

    storage: ClassVar[str] = "masked"

    def __init__(
        self,
        owner: nn.Module,
        names: Sequence[str],
        grids: Sequence[Grid],
        holders: Sequence[tuple[nn.Module, str]],
        capacity: int,
        prefix: str = FIRST,
    ) -> None:
        self.owner = owner
        self._prefix = prefix
        self.unit_size = grids[0].size
        self.capacity = capacity
        rows = zip(names, grids, holders, strict=True)
        self.sites = tuple(MaskedSite(n, g, self, i, h) for i, (n, g, h) in enumerate(rows))

    @property
    def buffer_names(self) -> tuple[str, ...]:
        """Names of the masks on the owner."""
        return tuple(f"{self._prefix}mask{i}" for i in range(len(self.sites)))

    def mask(self, index: int) -> Tensor:
        """Bool, flat, of one site."""
        found = self.owner._buffers[self.buffer_names[index]]
        assert found is not None
        return found

    @property
    def held(self) -> int:
        """Units held now."""
        return sum(int(self.mask(i).sum()) for i in range(len(self.sites))) // self.unit_size

    def places(self, index: int) -> Tensor:
        """Sorted int64 places of one site."""
        return self.sites[index].places()

    def born(self, index: int) -> Tensor | None:
        """int32 [units of the site], the step at which each unit was acquired; only where young units are damped."""
        return self.owner._buffers.get(f"{self._prefix}maskborn{index}")

    def register(self, ages: bool) -> None:
        """Put empty masks on the owner."""
        for index, site in enumerate(self.sites):
            mask = torch.zeros(site.parameter.numel(), dtype=torch.bool, device=site.parameter.device)
            self.owner.register_buffer(self.buffer_names[index], mask)
            if ages:
                born = torch.zeros(site.grid.units, dtype=torch.int32, device=mask.device)
                self.owner.register_buffer(f"{self._prefix}maskborn{index}", born)

    def unregister(self) -> None:
        """Take the masks off again."""
        for index, name in enumerate(self.buffer_names):
            del self.owner._buffers[name]
            self.owner._buffers.pop(f"{self._prefix}maskborn{index}", None)

    def write(self, places: Sequence[Tensor]) -> None:
        """Write the placement in place."""
        for index, (site, held) in enumerate(zip(self.sites, places, strict=True)):
            self.mask(index).copy_(site.grid.mask(held).flatten())

    @torch.no_grad()
    def widen(self, index: int, factor: float) -> None:
        """Scale the start values of one site."""
        self.sites[index].parameter.mul_(factor)

    @torch.no_grad()
    def clear_outside(self) -> None:
        """Set every weight that is not held to exact zero, whatever the optimizer did to it."""
        for site in self.sites:
            site.parameter.masked_fill_(~site.mask(), 0.0)


def check_masks(pool: MaskedPool, state: dict[str, Tensor], prefix: str) -> int:
    """Refuse masks from outside that do not fit; say how many weights they hold. Nothing has been copied yet."""
    held = 0
    for name, site in zip(pool.buffer_names, pool.sites, strict=True):
        mine, mask = pool.owner._buffers[name], state[prefix + name]
        assert mine is not None
        if mask.dtype != torch.bool or mask.shape != mine.shape:
            raise RecordError(f"{prefix + name}: {tuple(mask.shape)} {mask.dtype}, here {tuple(mine.shape)} torch.bool")
        held += int(mask.sum())
        dense = state.get(prefix + site.name)
        if dense is not None and bool(dense.reshape(-1)[~mask.to(dense.device)].any()):
            raise RecordError(f"{prefix + site.name}: a weight outside its mask is not zero; load the state as saved")
    if held > pool.capacity * pool.unit_size:
        raise RecordError(f"the masks hold {held} weights, the budget is {pool.capacity * pool.unit_size}")
    return held
