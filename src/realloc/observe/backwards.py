"""Which backwards count: those whose gradient reached the parameter and was not thrown away again."""

from __future__ import annotations

from typing import final

from realloc.kernels.taps import current_task
from realloc.pool.flat import FlatPool
from realloc.sites.last_gradient import LastGradient


@final
class Backwards:
    """The backwards of one pool since the last step. Its first two methods are hooked on the pool's parameter."""

    def __init__(self, pool: FlatPool) -> None:
        self.pool = pool
        self.arrived: set[int] = set()
        self._taps = tuple(site.tap for site in pool.sites)
        self._last = LastGradient()
        self._updated: list[bool] | None = None  # by site, at the last step; None: all
        for tap in self._taps:
            tap.arrived = self.arrived

    def begin(self) -> None:
        """Before a gradient is accumulated. If the ones before it were thrown away, forget their backwards.

        A GradScaler skips a step without a word to the optimizer; this is the sign. Backwards nest (checkpointing
        runs one inside another), so what has not arrived yet is kept.
        """
        arrived = self.arrived
        if arrived and current_task() not in arrived and self._last.thrown_away(self.pool.parameter.grad):
            for tap in self._taps:
                tap.keep({notice.task for notice in tap.seen} - arrived)
            arrived.clear()

    def arrive(self) -> None:
        """After it was accumulated: only now is it sure that the parameter was asked for, not an input."""
        self.arrived.add(current_task())
        self._last.remember(self.pool.parameter.grad)

    def settle(self) -> bool:
        """Before the update: keep what arrived. Says whether every site takes part in the update."""
        arrived, everyone = self.arrived, True
        for site in self.pool.sites:
            seen = site.tap.seen
            if not (len(seen) == 1 and seen[0].task in arrived):
                site.tap.keep(arrived)
                everyone = everyone and bool(site.tap.seen)
            if site.frozen:
                everyone = False
        if everyone:
            self._updated = None
        return everyone

    def updated(self) -> list[bool]:
        """Which sites the update may change: those that torch would not skip for want of a gradient.

        A gradient that no backward brought was set by hand and is for all; or it is still the last one, and a
        second step on it is for those that the first was for.
        """
        gradient = self.pool.parameter.grad
        flags = [bool(tap.seen) for tap in self._taps]
        if self.arrived or gradient is None:
            self._updated = flags
        elif self._updated is None or not self._last.is_in(gradient):
            flags = [True] * len(flags)
        else:
            flags = self._updated
        return [flag and not site.frozen for flag, site in zip(flags, self.pool.sites, strict=True)]

    def forget(self) -> None:
        """After the update: what was seen before it counts no more."""
        self.arrived.clear()
        for tap in self._taps:
            tap.seen.clear()

    def arm(self, armed: bool) -> None:
        """Before the first backward of a step: whether it is to be captured."""
        self.arrived.clear()
        for tap in self._taps:
            tap.reset()
            tap.armed, tap.listens = armed, True
