"""Arms: the ways to spend one budget that the command line can train, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import realloc.train.models as models
import realloc.train.optimizers as optimizers
import realloc.train.widths as widths
from realloc.attach import attach
from realloc.choose_columns import method_over
from realloc.errors import ConfigError, nearest, plain
from realloc.methods.column_method import ColumnMethod
from realloc.methods.example_method import ExampleMethod
from realloc.methods.hot_row_method import HotRowMethod
from realloc.methods.method import Method
from realloc.methods.rate_method import RateMethod
from realloc.methods.rows import rows as hot_rows
from realloc.methods.width_method import WidthMethod
from realloc.plan import StartPlan
from realloc.prepare import describe, plan_start
from realloc.record.sink import Sink
from realloc.schedule import Schedule
from realloc.schedule import every as fire_every
from realloc.train.columns import RULE
from realloc.train.config import RunConfig, refuse_flag
from realloc.train.dataset import Dataset
from realloc.train.id_tables import DIRECTIONS, OWN, IdTables, TablePlan, doubled_rows, full_tables, shared_rows
from realloc.train.length import Length
from realloc.train.loop import Trainee
from realloc.train.prune_after import cut, turn
from realloc.train.settings import RECIPES, AnyMethod, moves_rows, options, recipe
from realloc.train.visit_order import VisitBatches

Attached = Method | RateMethod | HotRowMethod | WidthMethod
CONTROLS = {
    "dense": "every weight, no budget: what the others are measured against",
    "small_dense": "the narrowest dense net with at least as many trainable parameters as the sparse one",
    "prune_after": "half the run dense, one global magnitude cut to the budget, the other half for what is left",
    "hashed": "a dense net whose ids hash to shared rows, within the bytes of rows, 10 % without --rows; nothing moves",
    "double_hashing": "the same, but each id reads the product of two hashed rows: the best of all at equal bytes",
}
STILL = ("hashed", "double_hashing")  # that spend a budget of rows, and move none
FIRST = "fc1"  # the layer that sees the inputs
ROWS = "10%"  # of the full tables' bytes, where a budget of rows is spent and none is named


@final
@dataclass(frozen=True)
class Arm:
    """One way to spend the budget, resolved for a data set.

    ``method`` is one of weights where columns move, made for the net's first layer. ``rest`` counts the trainable
    numbers outside the sites (biases, the classifier), ``held`` the weights that the sites hold at the end, or at the
    start where widths move; ``plan`` is how a sparse model starts, None for the dense arm. ``tables`` says how ids are
    looked up, None without any; ``beside`` moves their rows where the method does not and there is a budget for them.
    """

    name: str
    model: str
    method: Attached | ExampleMethod | None
    density: float | None
    rest: int
    held: int
    plan: StartPlan | None
    tables: TablePlan | None = None
    beside: HotRowMethod | None = None

    @property
    def moves(self) -> bool:
        """Whether its method ever moves a unit at the schedule's steps."""
        return self.method is not None and not isinstance(self.method, ExampleMethod) and self.method.moves

    @property
    def chooses_inputs(self) -> bool:
        """Whether its units are inputs of the net."""
        return isinstance(self.method, Method) and self.method.where.block == "column"

    @property
    def moves_widths(self) -> bool:
        """Whether its budget is spent on widths of hidden layers."""
        return isinstance(self.method, WidthMethod)

    @property
    def target(self) -> int:
        """Trainable numbers of the sparse model in all."""
        return self.rest + self.held


# what papers and talks call a method that has another name here
ALIASES = {
    "set": "sparse_evolution",
    "sparse_momentum": "snfs",
    "cht": "chts",
    "random": "random_moves",
    "magnitude_pruning": "gmp",
    "gradual_pruning": "gmp",
}


def names() -> tuple[str, ...]:
    """Every name that ``--method`` takes."""
    return (*CONTROLS, *RECIPES)


def check_name(name: str) -> None:
    """Refuse a method that nobody knows."""
    if name in names():
        return
    word = name.strip().lower().replace("-", "_").replace(" ", "_")
    called = ALIASES.get(word, word)
    close = f"; nearest: '{called}'" if called in names() else nearest(word, names())
    raise ConfigError(f"method '{plain(name)}' is unknown{close}; list them with: realloc methods")


def setting_names(name: str) -> tuple[str, ...]:
    """Names that ``--set`` takes for an arm."""
    return () if name in CONTROLS else tuple(option.name for option in options(name))


def method_of(config: RunConfig) -> AnyMethod | None:
    """Make the method that the config names; None for a control.

    Raises ConfigError for an unknown name or setting, with the nearest one.
    """
    check_name(config.method)
    if config.method not in CONTROLS:
        return recipe(config.method, config.density, config.settings)
    if config.settings:
        first, value = next(iter(config.settings.items()))
        refuse_flag(first, value)
        raise ConfigError(f"setting '{plain(first)}' is unknown: '{config.method}' takes no settings; drop --set")
    return None


def resolve(config: RunConfig, data: Dataset) -> Arm:
    """Work out what an arm builds: its model, its method, its budget. Builds the full model once and drops it."""
    method, name = method_of(config), config.method
    moves_itself = isinstance(method, HotRowMethod) or name in STILL
    beside = None if moves_itself or budget_of_rows(config) is None else hot_rows()
    tables = tables_of(config, data, method if isinstance(method, HotRowMethod) else beside)
    model = build(config.model, config, data, tables)
    if isinstance(method, ColumnMethod):
        method = method_over(model, method.on(FIRST) if tables else method, None)
    if isinstance(method, WidthMethod):
        method = widths.over(method, config.model, data)
        plan = widths.start_of(model, method)
        rest = models.parameters(model) - plan.budget
        return Arm(name, config.model, method, None, rest, plan.budget, plan, tables, beside)
    sparse = Method(name, config.density) if name in ("small_dense", "prune_after") else method
    if not isinstance(sparse, Method):
        return Arm(name, config.model, method, None, 0, models.parameters(model), None, tables, beside)
    plan = describe(plan_start(model, sparse, config.seed), sparse)
    capacity = sum(line.capacity for line in plan.sites)
    held = plan.budget if sparse.held is None else round(sparse.density * capacity)
    rest, spec = models.parameters(model) - capacity, config.model
    if name == "small_dense":
        width, looked = (tables.width, tables.parameters) if tables else (0, 0)
        spec = models.small_dense(spec, data.features + width, data.outputs, rest + held - looked, data.image)
    return Arm(name, spec, method, sparse.density, rest, held, plan, tables, beside)


def budget_of_rows(config: RunConfig) -> int | str | None:
    """What tables may take: what was asked for, 10 % where rows are all that is spent; None: they are full."""
    if config.method == "dense":
        return None
    usual = ROWS if config.method in STILL or moves_rows(config.method) else None
    return usual if config.rows is None else config.rows


def tables_of(config: RunConfig, data: Dataset, mover: HotRowMethod | None) -> TablePlan | None:
    """How the columns of ids are looked up; without a mover, a budget of rows is hashed.

    Raises:
        ConfigError: a budget of rows, and nothing to look up, or one that does not fit.
    """
    looked, moments = data.columns.looked, optimizers.OPTIMIZERS[config.optimizer].moments
    rows = budget_of_rows(config)
    if rows is None:
        return full_tables(looked, moments)
    if not looked:
        asked = f"--rows {config.rows}" if config.rows is not None else f"--method {config.method}"
        named = f"write --ids {plain(data.columns.hints[0])}" if data.columns.hints else "name some by --ids"
        raise ConfigError(f"{asked} needs columns that are looked up, and '{data.name}' has none ({RULE}); {named}")
    if config.method == "double_hashing":
        return doubled_rows(looked, rows, moments=moments)
    directions = DIRECTIONS if mover is not None and mover.score.needs_directions else 0
    return shared_rows(looked, rows, moments=moments, own=0.0 if mover is None else OWN, directions=directions)


def begin(arm: Arm, config: RunConfig, data: Dataset, length: Length, record: Sink | None = None) -> Trainee:
    """Build model, optimizer and schedule, and attach the method if the arm has one."""
    model = build(arm.model, config, data, arm.tables)
    optimizer = optimizers.make(config.optimizer, model.parameters(), config.rate)
    half = turn(length.total) if arm.name == "prune_after" else 0
    scheduler = LambdaLR(optimizer, lambda step: decay(step, length.total, half))
    trainee = Trainee(model, optimizer, scheduler)
    if arm.beside is not None:  # rows first: what comes after them may replace parameters
        rows = attach(model, optimizer, arm.beside, schedule=_due(length), seed=config.seed, record=record)
        trainee = replace(trainee, rows=rows)
    if isinstance(arm.method, ExampleMethod):
        if length.epochs is None:  # a rehearsal, in which every example comes
            return trainee
        visits = VisitBatches(
            data.train, config.batch_size, arm.method, length.epochs, task=data.task, seed=config.seed
        )
        return replace(trainee, visits=visits)
    return trainee if arm.method is None else _attached(trainee, arm.method, length, config.seed, record)


def prune(trainee: Trainee, config: RunConfig, length: Length, record: Sink | None = None) -> Trainee:
    """Cut a dense trainee to the budget; what is left goes on with its moments."""
    return _attached(trainee, cut(trainee.model, config.density), length, config.seed, record)


def decay(step: int, total: int, half: int = 0) -> float:
    """Cosine from 1 to 0 over the run; where there are two halves, over each of them.

    >>> decay(0, 100), round(decay(50, 100), 3), decay(50, 100, 50)
    (1.0, 0.5, 1.0)
    """
    if half:
        step, total = (step, half) if step < half else (step - half, total - half)
    return (1.0 + math.cos(math.pi * min(1.0, step / max(1, total)))) / 2.0


def _due(length: Length) -> Schedule:
    # a run too short for moves still needs a schedule: it fires after the last step
    return length.schedule() or fire_every(length.total, total=length.total)


def _attached(trainee: Trainee, method: Attached, length: Length, seed: int, record: Sink | None) -> Trainee:
    handle = attach(trainee.model, trainee.optimizer, method, schedule=_due(length), seed=seed, record=record)
    return replace(trainee, handle=handle)


def build(spec: str, config: RunConfig, data: Dataset, tables: TablePlan | None) -> nn.Module:
    """Build the model of a description for a data set, with the run's seed, behind its tables."""
    width, front = (0, None) if tables is None else (tables.width, lambda: IdTables(tables))
    return models.build(
        spec, data.features + width, data.outputs, image=data.image, seed=config.seed, front=front
    )  # fmt: skip
