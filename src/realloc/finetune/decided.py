"""What a run does, decided once, before the first step, and written down: a resume decides nothing again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, final

from torch import Tensor

import realloc.finetune.arms.table as arms
import realloc.finetune.ceiling as ceiling
import realloc.finetune.focus as focus
from realloc.allocate.layer_costs import CostTable
from realloc.cache.known import Known
from realloc.errors import ConfigError
from realloc.finetune.arms.layers import table_of
from realloc.finetune.arms.ranks import RANKS, fewer
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.foresee import foreseen
from realloc.finetune.pace import Length
from realloc.finetune.scene import Scene
from realloc.finetune.trials import trial_steps
from realloc.finetune.weights import Loaded

EPOCHS: Final = 3.0
NO_LABELS: Final = "causal-lm has no labels that probes could foretell, so nothing is frozen: uniform LoRA"


@final
@dataclass(frozen=True)
class Decided:
    """A method of the table, its settings, and its length.

    ``expected``: steps; with seconds, an estimate. ``kept``: layers of the model, from the input; None: all.
    ``trial``: share of the run that one trial of other layers takes; 0: none. ``rate``: times the rate that was given.
    ``table``: what layers cost, where microseconds are their budget.
    """

    method: str
    settings: Mapping[str, Any]
    length: Length
    expected: int
    compute: str = "float32"
    why: str = ""
    lora_seconds: float | None = None
    costs: Mapping[str, float] | None = None
    kept: int | None = None
    trial: float = 0.0
    rate: float = 1.0
    table: CostTable | None = None

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def from_json(values: Mapping[str, Any]) -> Decided:
    """Read back what ``as_json`` gave.

    >>> from_json(Decided("full", {}, Length(3), 3).as_json()).length
    Length(steps=3, seconds=None, reserve=0.0)
    """
    table = values.get("table")
    costs = (
        None if table is None else CostTable(tuple(table["forward"]), tuple(table["inputs"]), tuple(table["weights"]))
    )
    return Decided(**{**values, "length": Length(**values["length"]), "table": costs})


def decide(scene: Scene, known: Known | None = None) -> Decided:
    """Fix method, settings and length; focus measures before it does, and puts what the run can use into ``known``."""
    config, seconds = scene.config, scene.config.spend.seconds
    settings = dict(arms.check(config.method, config.settings))
    arms.check_cache(config.method, config.cache)
    choice, spent = _spent(scene, settings, known)
    length = Length(max(1, math.ceil(spent.epochs * scene.train.per_epoch)))
    if seconds is not None:
        length = foreseen(scene, seconds)
    trial = float(settings.get("trial", 0.0))
    tried = spent.method == "topk" and spent.deeper and trial_steps(trial, length.steps)
    measured = {} if choice is None else _measured(choice)
    return Decided(
        spent.method, dict(spent.settings), length, length.steps,
        why=spent.why, trial=trial if tried else 0.0, rate=spent.rate,
        table=table_of(settings, scene.loaded, scene.train), **measured,
    )  # fmt: skip


def _spent(scene: Scene, settings: Mapping[str, Any], known: Known | None) -> tuple[focus.Choice | None, ceiling.Spent]:
    """What trains and for how long; and what focus chose, where it was asked."""
    config, loaded, method, why = scene.config, scene.loaded, scene.config.method, ""
    epochs = config.epochs or EPOCHS
    most = config.spend.parameters_of(sum(p.numel() for p in loaded.model.parameters()))
    if method == arms.FOCUS and config.task != "causal-lm":
        if most is not None:
            ceiling.check_affordable(most, loaded)
        share, judged = float(settings["share"]), scene.held.tokens
        seconds = math.inf if config.spend.seconds is None else config.spend.seconds
        bounds = focus.Bounds(seconds, config.room.bytes)
        choice = focus.choose(loaded, scene.train, epochs, share, _targets(scene), judged, known, bounds)
        return choice, ceiling.under(choice, most, epochs, loaded, timed=config.spend.seconds is not None)
    if method == arms.FOCUS:
        method, settings, why = "lora", {"rank": ceiling.RANK}, NO_LABELS
    if most is not None:
        settings = _within(config, method, settings, most, loaded)
    why = why or _fewer(method, settings, loaded)
    return None, ceiling.Spent(method, settings, epochs, rate=1.0, why=why, deeper=False)


def _measured(choice: focus.Choice) -> dict[str, Any]:
    return {
        "compute": choice.compute, "kept": choice.kept, "lora_seconds": choice.lora_seconds,
        "costs": asdict(choice.costs),
    }  # fmt: skip


def _within(
    config: FinetuneConfig, method: str, settings: Mapping[str, Any], most: int, loaded: Loaded
) -> dict[str, Any]:
    found = arms.within(method, settings, most, loaded)
    for key, value in config.settings.items():
        if key in settings and found.get(key) != value:
            raise ConfigError(
                f"setting '{key}={value}' and the budget {config.budget} both say how many parameters train; give one"
            )
    return found


def _fewer(method: str, settings: Mapping[str, Any], loaded: Loaded) -> str:
    return fewer(settings["rank"], loaded) if method in RANKS and "rank" in settings else ""


def _targets(scene: Scene) -> Tensor:
    labels = scene.train.labels
    return labels.long() if scene.classes else scene.aim.standardised(labels)
