"""Which backwards count: those whose gradient reached the parameter and was not thrown away again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from torch import Tensor

from realloc.kernels.taps import Tap, current_task
from realloc.observe.gradients import PairGradient
from realloc.pool.holdings import Flat, Tapped
from realloc.sites.last_gradient import LastGradient, thrown_away
from realloc.sites.packed import PackedSite


@final
class Backwards:
    """The backwards of one pool since the last step.

    Itself the hook on the pool's parameter, not wrapped in `links.Hook`: that would be one more call in every backward.
    """

    def __init__(self, pool: Flat) -> None:
        self.pool = pool
        self.arrived: set[int] = set()
        self._taps = tuple(site.tap for site in pool.sites)
        self._sites: tuple[tuple[Tapped, Tap], ...] = tuple(zip(pool.sites, self._taps, strict=True))
        self._last = LastGradient()
        self._owners: list[bool] | None = None  # which sites have a part in the gradient; None: all
        self._asked: list[bool] = []  # which ones `torch.autograd.grad` went through
        self.task = -1  # the backward that began last
        self.complete = False  # whether one backward came, and every site was in it
        for tap in self._taps:
            tap.arrived, tap.listener = self.arrived, self

    def __call__(self, parameter: Tensor) -> None:
        """After a gradient was accumulated: only now is it sure that the parameter was asked for, not an input."""
        task, arrived = current_task(), self.arrived
        arrived.add(task)
        self.complete = len(arrived) == 1
        for site, tap in self._sites:
            seen = tap.seen
            if len(seen) != 1 or seen[0][0] != task or site.frozen:
                self.complete = False
                return
        self._owners = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[[Tensor], None]:
        return nothing  # a copied parameter is another model's

    def __reduce__(self) -> str:
        return "nothing"

    def begin(self, task: int) -> None:
        """Before anything of a backward is accumulated: if the ones before it were thrown away, forget them.

        A GradScaler skips a step without a word to the optimizer; this is the sign. Backwards nest (checkpointing
        runs one inside another), so what has not arrived yet is kept.
        """
        self.task, arrived = task, self.arrived
        if arrived and task not in arrived and thrown_away(self.pool.parameter.grad, self._was_zero):
            for tap in self._taps:
                tap.keep({notice.task for notice in tap.seen} - arrived)
            arrived.clear()

    def _was_zero(self) -> bool:
        """Whether what arrived brought nothing but zeros to the held units; only what was captured can tell."""
        if not all(tap.armed for tap in self._taps):
            return False
        for site in self.pool.sites:
            notices = [notice for notice in site.tap.seen if notice.task in self.arrived]
            pairs = [notice.pair for notice in notices if notice.pair is not None]
            dense = [notice.dense for notice in notices if notice.dense is not None]
            if isinstance(site, PackedSite):
                if bool(PairGradient(site.grid, pairs, dense, site.values()).at(site.places()).any()):
                    return False
            elif site.held and any(bool(gy.any()) for gy in [*dense, *(pair[1] for pair in pairs)]):
                return False
        return True

    def settle(self) -> bool:
        """Before the update: keep what arrived. Says whether every site takes part in the update."""
        arrived, everyone = self.arrived, True
        if not arrived:
            self._asked = [bool(tap.seen) for tap in self._taps]
        for site in self.pool.sites:
            seen = site.tap.seen
            if not (len(seen) == 1 and seen[0].task in arrived):
                site.tap.keep(arrived)
                everyone = everyone and bool(site.tap.seen)
            if site.frozen:
                everyone = False
        if everyone:
            self._owners = None
        elif arrived:
            self._owners = [bool(site.tap.seen) or self._has_gradient(site) for site in self.pool.sites]
        return everyone

    def _has_gradient(self, site: Tapped) -> bool:
        """Whether a gradient of an earlier step is still there, as where nobody calls `zero_grad`."""
        gradient = site.gradient_of_held()
        return gradient is not None and bool(gradient.any())

    def ballot(self) -> list[int]:
        """What this rank says of the update: whether a backward came; whose it was; and if none came, whose then.

        A gradient that no backward brought was set by hand and is for those that it was asked for, or for all;
        or it is still the last one, and a second step on it is for those that the first was for.
        """
        gradient, sites = self.pool.parameter.grad, len(self._taps)
        owners = self._owners or [True] * sites
        if self.arrived or gradient is None:
            return [int(bool(self.arrived)), *(int(flag and bool(self.arrived)) for flag in owners), *[0] * sites]
        if self._owners is None or self._last.set_by_hand(gradient):
            owners = self._asked if any(self._asked) else [True] * sites
        return [0, *[0] * sites, *map(int, owners)]

    def elected(self, votes: Sequence[int]) -> list[bool]:
        """Which sites the update may change, from the ballots of all ranks (their elementwise maximum)."""
        sites = len(self._taps)
        flags = votes[1 : sites + 1] if votes[0] else votes[sites + 1 :]
        return [flag > 0 and not site.frozen for flag, (site, _) in zip(flags, self._sites, strict=True)]

    def forget(self) -> None:
        """After the update: what was seen before it counts no more."""
        self.arrived.clear()
        self.complete = False
        if self._owners is not None:
            self._last.remember(self.pool.parameter.grad)
        for tap in self._taps:
            tap.seen.clear()

    def arm(self, armed: bool) -> None:
        """Before the first backward of a step: whether it is to be captured."""
        self.forget()
        for tap in self._taps:
            tap.reset()
            tap.armed, tap.listens = armed, True


def nothing(parameter: Tensor) -> None:
    """The hook of a copied or pickled parameter."""
