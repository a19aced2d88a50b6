"""What a finished fine-tuning run hands back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class FinetuneResult:
    """One run's outcome. Seconds run from the first measurement to the last judgement of the held-out texts.

    ``used`` is the method that trained, which focus chooses; ``held`` are figures of the slice of the training texts
    that decisions may look at, ``test`` those of the evaluation file, read once. ``trainable`` counts what trains at
    the end. ``peak_bytes`` is anonymous memory over its value once weights and texts are loaded.
    """

    method: str
    used: str
    settings: Mapping[str, Any]
    why: str
    model: str
    data: str
    task: str
    seed: int
    steps: int
    epochs: float
    lr: float
    train_seconds: float
    held: Mapping[str, float]
    test: Mapping[str, float] | None
    trainable: int
    parameters: int
    optimizer_bytes: int
    cached_bytes: int
    peak_bytes: int | None
    layers: Mapping[str, bool] | None
    predicted_lora_seconds: float | None
    costs: Mapping[str, float] | None
    threads: int

    def as_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold: a number that is not finite becomes None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
