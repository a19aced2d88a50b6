"""A data set whose items say which example they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch.utils.data import Dataset, IterableDataset

from realloc.errors import ConfigError


@final
class Indexed(Dataset[tuple[int, Any]]):
    """Items ``(number, item)`` of another data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return number, self.dataset[number]

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[int, Any]]:
        """A batch at once, where the data set can."""
        several = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[number] for number in numbers] if several is None else several(numbers)
        return list(zip(numbers, items, strict=True))


def indexed(dataset: Any) -> Indexed:
    """Hand out each item with its number: ``for index, (x, y) in loader``.

    Args:
        dataset: with a length and items by number; an ``IterableDataset`` has none.

    Raises:
        ConfigError: it has no length or no items by number, as an ``IterableDataset``.

    >>> indexed(["a", "b"])[1]
    (1, 'b')
    """
    named = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not named or isinstance(dataset, IterableDataset):  # that one inherits a __getitem__ which only raises
        raise ConfigError(
            f"dataset is a {type(dataset).__name__} without length and items by number; examples can only be chosen "
            "from one that has both"
        )
    return Indexed(dataset)
