"""Arms with our own LoRA ranks: in one pool, with a budget of parameters, on every linear layer of the blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from torch import Tensor, nn

from realloc.attach import attach, prepare
from realloc.calibrate import calibrate
from realloc.finetune.arms.arm import Arm, Kind, Order, optimizer_of
from realloc.finetune.arms.peft_lora import rank_of, rank_within
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
from realloc.schedule import every
from realloc.sites.blocks import blocks_of

LABELS: Final = "labels"  # in a batch that is measured
MEASURED: Final = 5  # batches, by those that choose ranks before training
MOVES: Final = 20  # in a run, at most
SETTLE: Final = 0.6  # share of the run after which ranks stay
SCALE: Final = 2.0  # alpha / r, as in peft's examples


def ranks(recipe: Callable[[int], RankMethod], *, moves: bool = True) -> Kind:
    """Make an arm of a recipe that takes ranks a layer."""

    def make(loaded: Loaded, order: Order) -> Arm:
        return beside(loaded, order, recipe(rank_of(order.settings)))

    return Kind(make, 3e-3, {"rank": 8}, rank_within, moves=moves)


def beside(loaded: Loaded, order: Order, method: RankMethod | DeltaMethod, apart: int = 1) -> Arm:
    """Put a method's ranks or deltas beside the linear layers of the blocks, measuring first where it asks for that.

    Moves are ``apart`` steps from each other at least, in a run that is long enough for two.
    """
    method = method.on(*(f"{name}.*" for name in blocks_of(loaded.model).names))
    if method.measures:
        few = [_with_labels(order, step) for step in range(MEASURED)]
        method = calibrate(loaded.model, few, method, loss=lambda model, batch: _loss(order, model, batch))
    prepare(loaded.model, method, seed=order.seed)
    optimizer = optimizer_of(loaded, order.rate)
    steps = max(2, order.steps)
    gap = min(max(apart, steps // MOVES), max(1, int(SETTLE * steps) // 2))
    schedule = every(gap, until=SETTLE, total=steps)
    handle = attach(loaded.model, optimizer, method, schedule=schedule, seed=order.seed, record=order.sink)
    return Arm(loaded.model, optimizer, handle)


def _with_labels(order: Order, step: int) -> Batch:
    batch, labels = order.batches.at(step)
    return {**batch, LABELS: labels}


def _loss(order: Order, model: nn.Module, batch: Batch) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != LABELS}
    return order.aim.losses(model, inputs, batch[LABELS])[0].mean()


RANKS: Final[Mapping[str, Kind]] = {
    "adalora": ranks(lambda rank: adalora(rank, scale=SCALE)),
    "eva": ranks(lambda rank: eva(rank, scale=SCALE), moves=False),
    "gora": ranks(lambda rank: gora(rank, scale=SCALE), moves=False),
    "lora": ranks(lambda rank: lora(rank, scale=SCALE), moves=False),
    "para": ranks(lambda rank: para(rank, scale=SCALE)),
    "random_ranks": ranks(lambda rank: random_ranks(rank, scale=SCALE)),
    "rank_gradient": ranks(lambda rank: rank_gradient(rank, scale=SCALE)),
}
