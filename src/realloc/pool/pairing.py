"""Whether a model, its optimizer and its averaged copies belong together. Only a load can part them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from realloc.errors import ConfigError, StateError

Trained = tuple[nn.Module, str, nn.Parameter]  # who has a parameter, under which name, and the one that it had


@final
@dataclass(frozen=True)
class Words:
    """How one kind of unit speaks of them."""

    mark: str  # name of the entry in an optimizer's groups
    parameters: str  # what the optimizer trains
    different: str  # what two that do not belong together hold


@final
class Pairing:
    """A stamp in the optimizer's groups names the units that its moments belong to; the model has the same.

    Args:
        optimizer: that trains them.
        trained: the parameters whose moments these are.
        stamp: the model's, as it is now.
        words: for errors.

    >>> net = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> words = Words("realloc_example", "the weights", "different examples")
    >>> pairing = Pairing(optimizer, [(net, "weight", net.weight)], lambda: 7, words)
    >>> pairing.write()
    >>> pairing.apart, optimizer.param_groups[0]["realloc_example"]
    (False, 7)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        trained: Iterable[Trained],
        stamp: Callable[[], int],
        words: Words,
    ) -> None:
        self._optimizer, self._trained, self._stamp, self._words = optimizer, list(trained), stamp, words
        self._ids = {id(parameter) for _, _, parameter in self._trained}
        self.unchecked = True  # whether something was loaded since they were last compared

    def doubt(self) -> None:
        """Something was loaded."""
        self.unchecked = True

    def write(self) -> None:
        """The moments belong to the units as they are now, whatever was written there."""
        stamp = self._stamp()
        for group in self._optimizer.param_groups:
            if any(id(parameter) in self._ids for parameter in group["params"]):
                group[self._words.mark] = stamp

    def renew(self) -> None:
        """The same, but never over what was loaded and not compared."""
        if not self.unchecked:
            self.write()

    def wipe(self) -> None:
        """Take it off."""
        for group in self._optimizer.param_groups:
            group.pop(self._words.mark, None)

    @property
    def written(self) -> bool:
        """Whether the optimizer names any units."""
        return any(self._words.mark in group for group in self._optimizer.param_groups)

    @property
    def apart(self) -> bool:
        """Whether it names others."""
        stamp = self._stamp()
        return any(group.get(self._words.mark, stamp) != stamp for group in self._optimizer.param_groups)

    def check(self) -> None:
        """Refuse a model and an optimizer that do not belong together.

        Raises:
            StateError: one was loaded without the other, or parameters were replaced.
        """
        for module, key, parameter in self._trained:
            if module._parameters.get(key) is not parameter:
                raise StateError(
                    f"{self._words.parameters} were replaced after attach (load_state_dict(assign=True)?) and the "
                    "optimizer trains the old ones; load without assign"
                )
        if self.apart:
            raise StateError(
                f"model and optimizer hold {self._words.different}: one was loaded without the other. Load both, or "
                "call handle.restart_moments() to go on with new moments"
            )
        self.unchecked = False


def together(stamps: Iterable[int]) -> int:
    """One stamp of several, 62 bits, as they come."""
    found = 0
    for stamp in stamps:
        found = (found * 1_000_003 + stamp) % 2**62
    return found


def check_average(average: object, integers: str) -> None:
    """Refuse what is no averaged copy whose units can follow those of the model.

    Args:
        average: the copy.
        integers: what its buffers hold, beside floats.

    Raises:
        ConfigError: it is no module, or averages its integers too.
    """
    if not isinstance(average, nn.Module):
        raise ConfigError(f"the copy is a {type(average).__name__}; give the averaged module")
    if getattr(average, "use_buffers", False):
        raise ConfigError(
            f"use_buffers=True averages the integers of the {integers} too; make the copy with use_buffers=False"
        )
