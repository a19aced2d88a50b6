"""The bookkeeping that must travel with the values: integers by name in one int64 buffer of a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn


@final
class Book:
    """Counts of one attached model, read and written in place in its buffer.

    The first of the ``fields`` is "format", the version of what is written; behind the last may come a tail, such as
    one number a group. The buffer belongs to the module: a copy, a load and `state_dict()` need no word of ours.

    >>> book = Book(nn.Module(), "realloc_example", ("format", "seed", "steps"), 1)
    >>> book.register({"seed": 7}, tail=(5, 6))
    >>> book.count(), book.add("steps", 2), book.read("seed"), book.tail.tolist()
    (1, 3, 7, [5, 6])
    """

    def __init__(self, owner: nn.Module, key: str, fields: Sequence[str], version: int) -> None:
        self.owner, self.key, self.fields, self.version = owner, key, fields, version
        self._place = {field: place for place, field in enumerate(fields)}
        self._steps = self._place["steps"]
        self._known: Tensor | None = None
        self._address = 0
        self._memory: memoryview | None = None

    def register(
        self, numbers: Mapping[str, int], tail: Sequence[int] = (), device: torch.device | None = None
    ) -> None:
        """Put a new book on the owner; what is not named begins at 0."""
        known = dict.fromkeys(self.fields, 0) | {"format": self.version} | dict(numbers)
        found = [*(known[field] for field in self.fields), *tail]
        self.owner.register_buffer(self.key, torch.tensor(found, dtype=torch.int64, device=device))

    def unregister(self) -> None:
        """Take it off."""
        del self.owner._buffers[self.key]

    @property
    def there(self) -> bool:
        """Whether the owner has one."""
        return self.key in self.owner._buffers

    @property
    def tensor(self) -> Tensor:
        """The buffer."""
        found = self.owner._buffers[self.key]
        assert found is not None
        return found

    @property
    def tail(self) -> Tensor:
        """What stands behind the fields, a view."""
        return self.tensor[len(self.fields) :]

    def fits(self, found: Tensor) -> bool:
        """Whether a buffer from outside is of this version and as long."""
        return found.dtype == torch.int64 and found.shape == self.tensor.shape and int(found[0]) == self.version

    def named(self, found: Tensor) -> dict[str, int]:
        """The fields of a buffer from outside that fits."""
        return dict(zip(self.fields, found.tolist(), strict=False))

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
        return int(self.tensor[self._place[name]] if numbers is None else numbers[self._place[name]])

    def write(self, name: str, value: int) -> None:
        """Set one number in place."""
        numbers = self._numbers()
        if numbers is None:
            self.tensor[self._place[name]] = value
        else:
            numbers[self._place[name]] = value

    def count(self) -> int:
        """Add one step. Returns the number of steps. As `add`, but made at every step."""
        book, numbers = self.owner._buffers[self.key], self._memory
        if book is None or numbers is None or book is not self._known or book.data_ptr() != self._address:
            return self.add("steps")
        numbers[self._steps] = step = numbers[self._steps] + 1
        return step

    def add(self, name: str, value: int = 1) -> int:
        """Add to one number in place. Returns it."""
        place, numbers = self._place[name], self._numbers()
        if numbers is None:
            return int(self.tensor[place].add_(value))
        numbers[place] = found = numbers[place] + value
        return int(found)

    def __getstate__(self) -> tuple[nn.Module, str, Sequence[str], int]:
        return self.owner, self.key, self.fields, self.version  # a copy has memory of its own

    def __setstate__(self, state: tuple[nn.Module, str, Sequence[str], int]) -> None:
        Book.__init__(self, *state)
