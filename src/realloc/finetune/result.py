"""What a finished fine-tuning run hands back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from realloc.train.result import read_back


@final
@dataclass(frozen=True)
class FinetuneResult:
    """One run's outcome. Fields that do not apply are None; times are seconds, sizes bytes.

    ``used`` is the method that trained, which focus chooses. ``train_seconds`` runs from the first measurement to the
    judgement of the held-out texts, everything included but the writing of checkpoints (``save_seconds``). ``held`` are
    figures of the slice of the training texts that decisions may look at; ``test`` (and what begins so) those of the
    evaluation texts, read once. ``trainable`` counts what trains at the end, ``optimizer_bytes`` its state.
    ``ledger`` counts the parameters of a run with ranks of our own: budget = head + held + parked.
    ``peak_bytes`` is anonymous memory over its value once weights and texts are loaded.
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
    batch_size: int
    lr: float
    metric: str
    test_metric: float | None
    test_accuracy: float | None
    test_loss: float | None
    test_rmse: float | None
    held: Mapping[str, float]
    test: Mapping[str, float] | None
    train_seconds: float
    evaluate_seconds: float
    save_seconds: float
    setup_seconds: float
    trainable: int
    parameters: int
    ledger: Mapping[str, int] | None
    optimizer_bytes: int
    cached_bytes: int
    peak_bytes: int | None
    train_peak_bytes: int | None
    mapped_bytes: int | None
    layers: Mapping[str, bool] | None
    predicted_lora_seconds: float | None
    costs: Mapping[str, float] | None
    versions: Mapping[str, str | None]
    threads: int
    finished: bool
    resumed_from: int | None
    folder: str | None

    def as_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold: a number that is not finite becomes None."""
        found: dict[str, Any] = _finite(asdict(self))
        return found


def from_json(values: Mapping[str, Any]) -> FinetuneResult:
    """Read back what ``as_json`` wrote."""
    return read_back(FinetuneResult, values)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
