"""The learning rate over a run: up, then down to zero, by steps or by seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from torch.optim import Optimizer

WARM: Final = 0.06  # share of the run
LEAST: Final = 1e-3  # of the rate: a run of a few steps takes no step at rate zero


@final
@dataclass(frozen=True)
class Length:
    """How long a run is: so many steps, or so many seconds and at most so many steps."""

    steps: int
    seconds: float | None = None

    def progress(self, step: int, elapsed: float) -> float:
        """From 0 to 1: the middle of a step that begins now, ``step`` steps having been taken.

        >>> Length(10).progress(9, 1e9), Length(10**7, 60.0).progress(5, 30.0)
        (0.95, 0.5)
        """
        gone = (step + 0.5) / self.steps
        return gone if self.seconds is None else max(gone, elapsed / self.seconds)

    def over(self, step: int, elapsed: float) -> bool:
        """Whether the run ends here."""
        return step >= self.steps or (self.seconds is not None and elapsed >= self.seconds)


def set_rate(optimizer: Optimizer, progress: float) -> None:
    """Linear warm-up over 6 %, then linear to zero, from each group's own rate.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    >>> set_rate(optimizer, 0.53); round(optimizer.param_groups[0]["lr"], 3)
    0.5
    """
    factor = progress / WARM if progress < WARM else max(0.0, 1 - progress) / (1 - WARM)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * max(factor, LEAST)
