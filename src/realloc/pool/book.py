"""The bookkeeping that must travel with the values: one int64 buffer on the model."""

from __future__ import annotations

from typing import Final, final

import torch
from torch import Tensor, nn

KEY: Final = "realloc_book"
FIELDS: Final = ("format", "seed", "steps", "moves", "units_moved", "skipped", "stamp", "budget")
FORMAT: Final = 1


@final
class Book:
    """Counts of one attached model, read and written in place in its buffer."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner

    def register(self, seed: int, budget: int) -> None:
        """Put a new book on the owner."""
        numbers = dict.fromkeys(FIELDS, 0) | {"format": FORMAT, "seed": seed, "budget": budget}
        self.owner.register_buffer(KEY, torch.tensor([numbers[f] for f in FIELDS], dtype=torch.int64))

    def unregister(self) -> None:
        """Take it off."""
        del self.owner._buffers[KEY]

    @property
    def tensor(self) -> Tensor:
        """The buffer."""
        found = self.owner._buffers[KEY]
        assert found is not None
        return found

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever somebody writes the book, or puts another tensor in its place."""
        book = self.tensor
        return id(book), -1 if book.is_inference() else book._version

    def read(self, name: str) -> int:
        """One number."""
        return int(self.tensor[FIELDS.index(name)])

    def write(self, name: str, value: int) -> None:
        """Set one number in place."""
        self.tensor[FIELDS.index(name)] = value

    def add(self, name: str, value: int = 1) -> None:
        """Add to one number in place."""
        self.tensor[FIELDS.index(name)].add_(value)
