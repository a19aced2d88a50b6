"""What a run would do, without training: for ``--dry-run``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import realloc.train.arms as arms
import realloc.train.data as data
import realloc.train.models as models
from realloc.methods.example_method import ExampleMethod
from realloc.methods.method import Method
from realloc.methods.width_method import WidthMethod
from realloc.plan import StartPlan
from realloc.train.columns import RULE, Columns
from realloc.train.config import RunConfig
from realloc.train.id_tables import TablePlan
from realloc.train.length import Length, by_epochs, chosen
from realloc.train.order import Batches


@final
@dataclass(frozen=True)
class Preview:
    """One arm, resolved. ``length`` is None where a time budget decides it by measurement at the start.

    ``moves`` says whether the method can ever move a unit; the controls have none.
    """

    method: str
    data: str
    model: str
    params: int
    held: int | None
    plan: StartPlan | None
    length: Length | None
    moves: bool
    optimizer: str
    lr: float
    columns: Columns
    tables: TablePlan | None

    def as_json(self) -> dict[str, Any]:
        """A dict that strict JSON can hold."""
        columns = {
            "inputs": list(self.columns.inputs), "categories": dict(self.columns.categories),
            "hints": list(self.columns.hints), "rule": RULE,
        }  # fmt: skip
        tables = None if self.tables is None else self.tables.as_json()
        return {"dry_run": True} | asdict(self) | {"columns": columns, "tables": tables}


def preview(config: RunConfig) -> Preview:
    """Load the data and resolve the arm; raises ConfigError where a run would."""
    loaded = data.load(config.data, config.task, config.label, config.ids or ())
    arm = arms.resolve(config, loaded)
    batches = Batches(loaded.train, config.batch_size, config.seed)
    length = by_epochs(config, batches.per_epoch) if config.budget_seconds is None else None
    if length is not None and isinstance(arm.method, ExampleMethod):
        length = chosen(config, length, arm.method, len(loaded.train.y))
    small = arm.name == "small_dense"
    params = models.parameters(arms.build(arm.model, config, loaded, arm.tables)) if small else arm.target
    sited = isinstance(arm.method, Method | WidthMethod)
    held = arm.held if sited or arm.name == "prune_after" else None
    plan = arm.plan if sited else None
    return Preview(
        arm.name, loaded.describe(), arm.model, params, held, plan, length, arm.moves, config.optimizer, config.rate,
        loaded.columns, arm.tables,
    )  # fmt: skip
