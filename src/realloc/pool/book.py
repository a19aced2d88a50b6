"""The bookkeeping that must travel with the values: one int64 buffer on the model."""

from __future__ import annotations

from typing import Final, final

import torch
from torch import Tensor, nn

KEY: Final = "realloc_book"
FIELDS: Final = ("format", "seed", "steps", "moves", "units_moved", "skipped", "stamp", "budget")
PLACE: Final = {field: place for place, field in enumerate(FIELDS)}
STEPS: Final = PLACE["steps"]
FORMAT: Final = 1


@final
class Book:
    """Counts of one attached model, read and written in place in its buffer."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self._known: Tensor | None = None
        self._address = 0
        self._memory: memoryview | None = None

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

    def _numbers(self) -> memoryview | None:
        """The buffer's own memory: a hundred times quicker than an operation on it, and read at every step."""
        book = self.tensor
        address = book.data_ptr()
        if book is not self._known or address != self._address:
            if book.device.type != "cpu":
                return None
            self._known, self._address, self._memory = book, address, memoryview(book.numpy())  # type: ignore[arg-type]
        return self._memory

    def read(self, name: str) -> int:
        """One number."""
        numbers = self._numbers()
        return int(self.tensor[PLACE[name]] if numbers is None else numbers[PLACE[name]])

    def write(self, name: str, value: int) -> None:
        """Set one number in place."""
        numbers = self._numbers()
        if numbers is None:
            self.tensor[PLACE[name]] = value
        else:
            numbers[PLACE[name]] = value

    def count(self) -> int:
        """Add one step. Returns the number of steps. As `add`, but made at every step."""
        book, numbers = self.owner._buffers[KEY], self._memory
        if book is None or numbers is None or book is not self._known or book.data_ptr() != self._address:
            return self.add("steps")
        numbers[STEPS] = step = numbers[STEPS] + 1
        return step

    def add(self, name: str, value: int = 1) -> int:
        """Add to one number in place. Returns it."""
        place, numbers = PLACE[name], self._numbers()
        if numbers is None:
            return int(self.tensor[place].add_(value))
        numbers[place] = found = numbers[place] + value
        return int(found)

    def __getstate__(self) -> dict[str, nn.Module]:
        return {"owner": self.owner}  # a copy has memory of its own

    def __setstate__(self, state: dict[str, nn.Module]) -> None:
        Book.__init__(self, state["owner"])
