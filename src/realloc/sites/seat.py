"""What a site asks of the pool that holds its units. The pool knows its sites; a site knows only this."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Slots(Protocol):
    """A flat pool, as a packed site sees it."""

    @property
    def parameter(self) -> nn.Parameter:
        """The values, ``(n, 1)``."""

    @property
    def columns(self) -> Tensor:
        """int32, the column of each unit of the pool."""

    @property
    def extents(self) -> Tensor:
        """int64, the first unit of each site, and the end."""

    @property
    def compute(self) -> Tensor:
        """int8, how each site computes."""

    def bounds(self, index: int) -> tuple[int, int]:
        """First and past-last unit of a site."""

    def places(self, index: int) -> Tensor:
        """Sorted places of a site."""

    def row_pointer(self, index: int) -> Tensor:
        """CSR row pointer of a site."""

    def slots(self, flat: Tensor, index: int) -> Tensor:
        """The part of a pool-shaped tensor that belongs to a site."""

    def segment(self, index: int) -> tuple[Tensor, bool]:
        """Values of a site for the forward pass, and whether they are the whole pool."""


class Segments(Protocol):
    """A pool of ranks, as a layer with ranks sees it."""

    @property
    def extents(self) -> Tensor:
        """int64, the first slot of each site, and the end."""

    @property
    def parameter(self) -> nn.Parameter:
        """The values, ``(n, 1)``."""

    def bounds(self, index: int) -> tuple[int, int]:
        """First and past-last slot of a site."""

    def places(self, index: int) -> Tensor:
        """Sorted places of a site."""

    def segment(self, index: int) -> tuple[Tensor, bool]:
        """Values of a site for the forward pass, and whether they are the whole pool."""


class Masks(Protocol):
    """A masked pool, as a masked site sees it."""

    def mask(self, index: int) -> Tensor:
        """Bool, flat, of one site."""

    def born(self, index: int) -> Tensor | None:
        """Steps at which the units of a site were acquired."""
