"""How what a method keeps on a model is called: each method's pools, masks and counts begin with its own prefix."""

from __future__ import annotations

from typing import Final

FIRST: Final = "realloc_"


def prefix(number: int) -> str:
    """Of the method that came as number 0, 1, ... among those on one model.

    >>> prefix(0), prefix(1)
    ('realloc_', 'realloc_2_')
    """
    return FIRST if number == 0 else f"{FIRST}{number + 1}_"
