"""Arms with our own LoRA ranks: in one pool, with a budget of parameters, on every linear layer of the blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from torch import Tensor, nn

from realloc.attach import attach, prepare
from realloc.calibrate import calibrate
from realloc.errors import ConfigError
from realloc.finetune.arms.arm import SECONDS, Arm, Kind, Order, left_beside_head, optimizer_of
from realloc.finetune.arms.peft_lora import RATE, linear_of, rank_of
from realloc.finetune.batches import Batch
from realloc.finetune.weights import Loaded
from realloc.methods.adalora import adalora
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.eva import eva
from realloc.methods.gora import gora
from realloc.methods.lora import lora
from realloc.methods.para import para
from realloc.methods.random_ranks import random_ranks
from realloc.methods.rank_gradient import rank_gradient
from realloc.methods.rank_method import RankMethod
from realloc.schedule import Schedule, every
from realloc.sites.blocks import blocks_of
from realloc.train.config import Setting

LABELS: Final = "labels"  # in a batch that is measured
MEASURED: Final = 5  # batches, by those that choose ranks before training
MOVES: Final = 20  # in a run, at most
SETTLE: Final = 0.6  # share of the run after which ranks stay
SCALE: Final = 2.0  # alpha / r, as in peft's examples
SMALL: Final = 0.5  # the same of ranks that move much: they bear a higher rate so, and the new head needs one
PARAMETERS: Final = "budget"  # of the ranks, in the settings of a run with a budget of parameters
CAP: Final = "cap"  # most ranks of a layer, in the settings; 0: as many as the method takes
TOP: Final = "layers"  # that may hold ranks, the highest ones, in the settings of a run that focus decided


class Recipe(Protocol):
    """A rank method that takes ranks a layer, or parameters in all."""

    def __call__(self, rank: int | None = None, *, budget: int | None = None, scale: float = 1.0) -> RankMethod:
        """Make the method."""


def ranks(recipe: Recipe, *, moves: bool = True, capped: bool = True, scale: float = SCALE, rate: float = RATE) -> Kind:
    """Make an arm of a recipe. Of a budget of parameters the pool's length is the whole, at every step of the run.

    ``capped``: whether layers hold different numbers of ranks, so that the most of one is a setting.
    """

    def make(loaded: Loaded, order: Order) -> Arm:
        if PARAMETERS in order.settings:
            method = recipe(budget=int(order.settings[PARAMETERS]), scale=scale).at_most()
        else:
            method = recipe(rank_of(order.settings, loaded), scale=scale)
        return beside(loaded, order, replace(method, cap=int(order.settings.get(CAP, 0)) or None))

    return Kind(make, rate, {"rank": 8, CAP: 0} if capped else {"rank": 8}, ranks_within, moves=moves)


def ranks_within(settings: Mapping[str, Setting], most: int, loaded: Loaded) -> dict[str, Setting]:
    """So many parameters in place of a rank, to the last one: what pays for no rank is parked in the pool.

    Raises:
        ConfigError: less than the cheapest rank takes, or more than all ranks of all layers hold.
    """
    shapes = [tuple(module.weight.shape) for _, module in linear_of(loaded)]
    whole = sum(min(shape) * sum(shape) for shape in shapes)
    check_least(most, loaded)
    if most > whole:
        raise ConfigError(
            f"{left_beside_head(most)}, and all ranks of all linear layers hold "
            f"{whole:,}; lower the budget by {most - whole:,} or more, or take --method full"
        )
    return {key: value for key, value in settings.items() if key != "rank"} | {PARAMETERS: most}


def check_least(most: int, loaded: Loaded) -> None:
    """Refuse a budget of parameters that pays for no rank at all.

    Raises:
        ConfigError: less than the cheapest rank takes.
    """
    least = min(sum(module.weight.shape) for _, module in linear_of(loaded))
    if most < least:
        raise ConfigError(
            f"{left_beside_head(most)}, and the cheapest LoRA rank takes {least:,}; raise "
            f"the budget by {least - most:,} or more{SECONDS}"
        )


def fewer(rank: int, loaded: Loaded) -> str:
    """What to say of layers that have fewer ranks than were asked for; nothing where all have them."""
    found = [min(module.weight.shape) for _, module in linear_of(loaded)]
    short = [most for most in found if most < rank]
    if not short:
        return ""
    held = f"{min(short)}" + f" to {max(short)}" * (max(short) > min(short))
    return f"{len(short)} of {len(found)} linear layers have fewer than {rank} ranks and hold all of theirs, {held}"


def beside(loaded: Loaded, order: Order, method: RankMethod | DeltaMethod, apart: int = 1) -> Arm:
    """Put a method's ranks or deltas beside the linear layers of the blocks, measuring first where it asks for that.

    Moves are ``apart`` steps from each other at least, in a run that is long enough for two.
    """
    names = blocks_of(loaded.model).names[-int(order.settings.get(TOP, 0)) :]
    method = method.on(*(f"{name}.*" for name in names))
    if method.measures:
        few = [_with_labels(order, step) for step in range(MEASURED)]
        method = calibrate(loaded.model, few, method, loss=partial(_loss, order), seed=order.seed)
    prepare(loaded.model, method, seed=order.seed)
    optimizer = optimizer_of(loaded, order.rate)
    schedule = moments(order.steps, apart)
    handle = attach(loaded.model, optimizer, method, schedule=schedule, seed=order.seed, record=order.sink)

    def revised(step: int, total: int) -> None:
        nonlocal schedule
        if step < schedule.last:
            schedule = moments(total, apart, step, step // schedule.n * schedule.n)
            handle.reschedule(schedule)

    return Arm(loaded.model, optimizer, handle, revised=revised)


def moments(steps: int, apart: int = 1, gone: int = 0, made: int = 0) -> Schedule:
    """When units move in a run of so many steps: ``gone`` of them are over, and ``made`` is that of the last move.

    The last move is still to come, if need be in the next step; two moves stay ``apart``.

    >>> print(moments(100)); print(moments(100, gone=70)); print(moments(60, 10, gone=26, made=24))
    every 5 steps after 0, to step 60 of 100: 12 moves, the last at step 60
    every 71 steps after 0, to step 71 of 100: 1 move, the last at step 71
    every 12 steps after 0, to step 36 of 60: 3 moves, the last at step 36
    """
    steps = max(2, steps)
    first = max(gone + 1, made + apart if made else 1)  # at which the next one may be
    until = max(math.floor(SETTLE * steps + 1e-6), first)
    gap = min(max(apart, steps // MOVES), max(1, until // 2))
    while (gone // gap + 1) * gap < first or until // gap * gap <= gone:
        gap += 1
    return every(gap, until=until, total=max(steps, until))


def _with_labels(order: Order, step: int) -> Batch:
    batch, labels = order.batches.at(step)
    return {**batch, LABELS: labels}


def _loss(order: Order, model: nn.Module, batch: Batch) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != LABELS}
    return order.aim.losses(model, inputs, batch[LABELS])[0].mean()


RANKS: Final[Mapping[str, Kind]] = {
    "adalora": ranks(adalora, scale=SMALL, rate=3e-3),
    "eva": ranks(eva, moves=False),
    "gora": ranks(gora, moves=False),
    "lora": ranks(lora, moves=False, capped=False),
    "para": ranks(para),
    "random_ranks": ranks(random_ranks),
    "rank_gradient": ranks(rank_gradient),
}
