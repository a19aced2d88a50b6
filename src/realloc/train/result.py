"""What a finished run hands back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, final

from realloc.errors import RecordError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Result = TypeVar("Result", bound="DataclassInstance")


@final
@dataclass(frozen=True)
class RunResult:
    """One run's outcome. Fields that do not apply are None; times are seconds.

    ``budget`` is held and parked together, in ``currency``: weights, example visits, millionths of learning rate,
    bytes of embedding rows, or parameters or FLOPs of layers whose widths move. ``tables`` says how columns of ids were
    looked up, ``inputs`` names those that a method of columns holds at the end, ``widths`` the units of each layer.
    ``params`` counts every trainable number, biases and dense layers included.
    ``excess`` is what a small dense model has over the sparse one it stands beside. ``train_seconds`` runs from the
    first batch to the last, moves included; evaluation, checkpoints and set-up are apart. ``peak_bytes`` is anonymous
    memory over its value once data and code are loaded, ``train_peak_bytes`` the same without what building the model
    and choosing its start took; mapped files are in ``mapped_bytes``. ``resumed_from`` is a step.
    """

    method: str
    data: str
    model: str
    seed: int
    density: float | None
    currency: str | None
    budget: int | None
    held: int | None
    parked: int | None
    moves: int | None
    units_moved: int | None
    metric: str
    test_metric: float | None
    test_accuracy: float | None
    test_loss: float | None
    test_rmse: float | None
    validation_metric: float | None
    train_seconds: float
    evaluate_seconds: float
    save_seconds: float
    setup_seconds: float
    peak_bytes: int | None
    train_peak_bytes: int | None
    mapped_bytes: int | None
    params: int
    excess: int | None
    steps: int
    every: int | None
    optimizer: str
    lr: float
    threads: int
    finished: bool
    resumed_from: int | None
    folder: str | None
    tables: dict[str, Any] | None = None
    inputs: list[str] | None = None
    widths: dict[str, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold: a number that is not finite becomes None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def from_json(values: Mapping[str, Any]) -> RunResult:
    """Read back what ``as_json`` wrote."""
    return read_back(RunResult, values)


def read_back(kind: type[Result], values: Mapping[str, Any]) -> Result:
    """Make a result, which is a dataclass, of its own JSON.

    Raises RecordError when keys are missing or unknown.
    """
    known = {f.name for f in fields(kind)}
    if set(values) != known:
        odd = ", ".join(sorted(known.symmetric_difference(map(str, values))))
        raise RecordError(f"the result was written by another version of realloc (differs in {odd}); run it again")
    return kind(**values)
