"""What a run says of itself while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

LOADING, COMPILING, WARMING, TRAINING = "loading", "compiling kernels", "warming up", "training"  # stages


@final
@dataclass(frozen=True)
class Progress:
    """Where a run stands. ``density`` is the share held by each site now; empty for a dense model."""

    stage: str
    step: int = 0
    total: int = 0
    seconds: float = 0.0
    loss: float | None = None
    metric: float | None = None
    moves: int = 0
    density: Mapping[str, float] = field(default_factory=dict)
    left: float | None = None  # seconds of a budget that are left


Tell = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Tell nobody."""
