"""Arms: the ways to spend one budget that the command line can train, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import realloc.train.models as models
import realloc.train.optimizers as optimizers
from realloc.attach import attach
from realloc.errors import ConfigError, nearest, plain
from realloc.methods.example_method import ExampleMethod
from realloc.methods.method import Method
from realloc.methods.rate_method import RateMethod
from realloc.plan import StartPlan
from realloc.prepare import describe, plan_start
from realloc.record.sink import Sink
from realloc.schedule import every as fire_every
from realloc.train.config import RunConfig, refuse_flag
from realloc.train.dataset import Dataset
from realloc.train.length import Length
from realloc.train.loop import Trainee
from realloc.train.prune_after import cut, turn
from realloc.train.settings import RECIPES, AnyMethod, options, recipe
from realloc.train.visit_order import VisitBatches

CONTROLS = {
    "dense": "every weight, no budget: what the others are measured against",
    "small_dense": "the narrowest dense net with at least as many trainable parameters as the sparse one",
    "prune_after": "half the run dense, one global magnitude cut to the budget, the other half for what is left",
}


@final
@dataclass(frozen=True)
class Arm:
    """One way to spend the budget, resolved for a data set.

    ``rest`` counts the trainable numbers outside the sites (biases, the classifier), ``held`` the weights that the
    sites hold at the end; ``plan`` is how a sparse model starts, None for the dense arm.
    """

    name: str
    model: str
    method: AnyMethod | None
    density: float | None
    rest: int
    held: int
    plan: StartPlan | None

    @property
    def moves(self) -> bool:
        """Whether its method ever moves a unit at the schedule's steps."""
        return isinstance(self.method, Method | RateMethod) and self.method.moves

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
    model = build(config.model, config, data)
    if name == "dense" or isinstance(method, ExampleMethod | RateMethod):
        return Arm(name, config.model, method, None, 0, models.parameters(model), None)
    sparse = method or Method(name, config.density)
    plan = describe(plan_start(model, sparse, config.seed), sparse)
    capacity = sum(line.capacity for line in plan.sites)
    held = plan.budget if sparse.held is None else round(sparse.density * capacity)
    rest, spec = models.parameters(model) - capacity, config.model
    if name == "small_dense":
        spec = models.small_dense(spec, data.features, data.outputs, rest + held, data.image)
    return Arm(name, spec, method, config.density, rest, held, plan)


def begin(arm: Arm, config: RunConfig, data: Dataset, length: Length, record: Sink | None = None) -> Trainee:
    """Build model, optimizer and schedule, and attach the method if the arm has one."""
    model = build(arm.model, config, data)
    optimizer = optimizers.make(config.optimizer, model.parameters(), config.rate)
    half = turn(length.total) if arm.name == "prune_after" else 0
    scheduler = LambdaLR(optimizer, lambda step: decay(step, length.total, half))
    trainee = Trainee(model, optimizer, scheduler)
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


def _attached(trainee: Trainee, method: Method | RateMethod, length: Length, seed: int, record: Sink | None) -> Trainee:
    # a run too short for moves still needs a schedule: it fires after the last step
    schedule = length.schedule() or fire_every(length.total, total=length.total)
    handle = attach(trainee.model, trainee.optimizer, method, schedule=schedule, seed=seed, record=record)
    return replace(trainee, handle=handle)


def build(spec: str, config: RunConfig, data: Dataset) -> nn.Module:
    """Build the model of a description for a data set, with the run's seed."""
    return models.build(spec, data.features, data.outputs, image=data.image, seed=config.seed)
