"""Running means of the dense gradient, kept as buffers of the model so that a resume has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from realloc.observe.gradients import GradientSource, update_average
from realloc.pool.holdings import Holdings


@final
class Averages:
    """One ``[units, size]`` buffer for each site, or nothing where the method does not ask for it (``decay=None``)."""

    def __init__(self, holdings: Holdings, decay: float | None) -> None:
        self._holdings = holdings
        self._decay = decay
        self._names = {name: f"{holdings.prefix}average{i}" for i, name in enumerate(holdings.sites)}
        if decay is not None:
            for name, site in holdings.sites.items():
                if self._names[name] not in holdings.owner._buffers:
                    like = site.values()
                    zeros = torch.zeros(site.grid.units, site.grid.size, dtype=like.dtype, device=like.device)
                    holdings.owner.register_buffer(self._names[name], zeros)

    @property
    def active(self) -> bool:
        """Whether gradients are wanted at every step."""
        return self._decay is not None

    def of(self, name: str) -> Tensor | None:
        """The running mean of one site."""
        return self._holdings.owner._buffers[self._names[name]] if self.active else None

    def update(self, gradients: Mapping[str, GradientSource]) -> None:
        """Take in the gradients of one step, by site."""
        if self._decay is None:
            return
        for name, site in self._holdings.sites.items():
            average = self.of(name)
            if name in gradients and average is not None:
                update_average(average, gradients[name], site.grid, self._decay)

    def unregister(self) -> None:
        """Take the buffers off the model."""
        if self.active:
            for name in self._names.values():
                self._holdings.owner._buffers.pop(name, None)
