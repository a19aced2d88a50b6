"""What a run must say aloud, once each: promise P6, and the ways in which a user's code silently does nothing."""

from __future__ import annotations

import weakref
from typing import final

from torch import nn

from realloc.errors import Once, plain
from realloc.observe.silence import LONG, Silence
from realloc.pool.holdings import Holdings
from realloc.sites.packed import half_frozen
from realloc.sites.wide import half_frozen_widths


@final
class Complaints:
    """Warnings of one attached model, each code at most once. ``old``: the dense weights that `attach` replaced."""

    def __init__(self, old: dict[str, weakref.ref[nn.Parameter]], holdings: Holdings) -> None:
        self._old = old
        self._holdings = holdings
        self._silence = Silence(holdings)
        self._once = Once()
        self.looked = False

    def skipped(self, step: int, reason: str) -> None:
        """A due move was not made."""
        self._once.say("RA001", f"no move at step {step}: {reason}; the budget is intact")

    def nothing_moved(self, steps: int) -> None:
        """The schedule has run to its end in vain."""
        why = "no place is free, the drop fraction times the units of each site is below one"
        if self._holdings.wide:
            why = "none was `mature` steps old (in a short run give fewer), none was cheap enough to go"
        self._once.say(
            "RA003",
            f"no unit has moved in {steps} steps: {why}, or every decision was skipped; see handle.explain(site)",
        )

    def unheard(self) -> None:
        """Before an update that has no gradient for anything that is held."""
        self._silence.note()
        self.passed_by()

    def passed_by(self) -> None:
        """Training has long reached nothing of what is held."""
        steps = self._silence.length
        if steps >= LONG:
            name, *rest = self._holdings.sites
            self._once.say(
                "RA008",
                f"no gradient has reached {plain(name)}" + f" or any of {len(rest)} more" * bool(rest) + f" in {steps} "
                "steps: is this the model you train, and do its layers run with gradients on? give the loop the "
                "attached model (a copy made after attach is another one), or attach the one that trains",
            )

    def look(self, root: nn.Module) -> None:
        """Look for a captured dense weight (once) and for a half-frozen layer."""
        if not self.looked:
            self._look_for_captured()
        self.looked = True
        names = half_frozen(root) + half_frozen_widths(root)
        if names:
            self._once.say(
                "RA004",
                f"the bias of {names[0]!r} was frozen after attach, its weight still trains: freezing a "
                "container does not reach the pool; call requires_grad_(False) on the layer itself",
            )

    def _look_for_captured(self) -> None:
        alive = [name for name, reference in self._old.items() if reference() is not None]
        self._old.clear()
        if alive:
            self._once.say(
                "RA002",
                f"the dense weight of {alive[0]!r} is still referenced: a parameter list captured before attach no "
                "longer reaches the trained weights; take model.parameters() again after attach",
            )
