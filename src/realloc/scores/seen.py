"""What a score may look at: some units of one site, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Generator, Tensor

from realloc.errors import StateError


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of ``u`` units of one site, each of ``e`` elements.

    A field that was not measured is None. Every tensor is read only by convention: scores never write.
    Values and gradients of one unit lie in one row, in the order of the block (row-major).
    """

    places: Tensor
    """int64[u], ascending: ``row * columns + column`` of each unit."""
    grid: tuple[int, int]
    """Rows and columns of the site, in units."""
    held: Tensor
    """int64[h], ascending: every held place of the site."""
    generator: Generator
    """CPU generator of this decision and site."""
    values: Tensor | None = None
    """[u, e] weights; zeros for units not held."""
    gradient: Tensor | None = None
    """[u, e] gradient of the loss, summed over the micro-batches of one optimizer step."""
    average: Tensor | None = None
    """[u, e] running mean of the gradient."""
    age: Tensor | None = None
    """int64[u] optimizer steps since the unit was acquired."""
    impression: Tensor | None = None
    """float64[u], how large the gradient of each unit was in its first interval, beside the others'."""

    def __post_init__(self) -> None:
        count = len(self.places)
        for name in ("values", "gradient", "average"):
            field = getattr(self, name)
            if field is not None and (field.ndim != 2 or len(field) != count):
                raise StateError(
                    f"Seen.{name} has shape {tuple(field.shape)} for {count} places; pass [{count}, elements of a unit]"
                )

    def __len__(self) -> int:
        return len(self.places)

    def total(self, elements: Tensor) -> Tensor:
        """Sum ``[u, e]`` over the elements of each unit; a unit of one element is that element."""
        return elements.squeeze(1) if elements.shape[1] == 1 else elements.sum(1)

    def need(self, name: str) -> Tensor:
        """Give a measured field, or say that it was not measured.

        Raises:
            StateError: the field is None.
        """
        field = getattr(self, name)
        if field is None:
            raise StateError(f"{name} was not measured for {len(self)} places; name it in the score's needs")
        assert isinstance(field, Tensor)
        return field
