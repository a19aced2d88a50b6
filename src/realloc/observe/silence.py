"""Whether training passes by what a method holds: steps in a row that had no gradient for any of it."""

from __future__ import annotations

from typing import Final, final

from realloc.pool.holdings import Holdings

LONG: Final = 10  # steps: a model may be left out of a few, but hardly of so many


@final
class Silence:
    """The steps in a row without a gradient, to the last. Told of those alone, so that the others cost nothing.

    Kept in no checkpoint: a resume counts anew.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._first = self._last = -2  # steps that had been taken before the first of them, and before the last

    def note(self) -> None:
        """Before an update that has no gradient for anything that is held; one that is frozen is to have none.

        A step that is skipped after all (a GradScaler's) comes again under the same number, and counts once.
        """
        if any(flat.parameter.requires_grad and not all(s.frozen for s in flat.sites) for flat in self._holdings.flats):
            self._first, self._last = self._taken - self.length, self._taken

    @property
    def length(self) -> int:
        """How many of the steps really taken, up to now, were among them."""
        taken = self._taken
        return taken - self._first if taken - self._last in (0, 1) else 0

    @property
    def _taken(self) -> int:
        return self._holdings.book.read("steps")
