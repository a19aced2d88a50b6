"""How many threads torch computes with, for as long as a run lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads in this block, and with as many as before afterwards; None: as many as now.

    >>> before = torch.get_num_threads()
    >>> with threads(before + 1):
    ...     torch.get_num_threads() - before
    1
    >>> torch.get_num_threads() - before
    0
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
