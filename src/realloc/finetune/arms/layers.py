"""Arms in which layers train in turn, by `realloc.attach`. One line each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, Final

from realloc.allocate.layer_costs import CostTable
from realloc.attach import attach
from realloc.cache.settings import Cache
from realloc.errors import ConfigError
from realloc.finetune.arms.arm import SECONDS, Arm, Kind, Order, left_beside_head, optimizer_of
from realloc.finetune.arms.rows import ROWS, touched
from realloc.finetune.batches import Batches
from realloc.finetune.weights import Loaded
from realloc.methods.autofreeze import autofreeze
from realloc.methods.badam import badam
from realloc.methods.egeria import egeria
from realloc.methods.layer_gradient import layer_gradient
from realloc.methods.layers import LayerMethod
from realloc.methods.lisa import lisa
from realloc.methods.random_layers import random_layers
from realloc.methods.topk import topk
from realloc.schedule import Schedule, every
from realloc.sites.blocks import blocks_of
from realloc.time_layers import cost_table
from realloc.train.config import Setting

TURNS: Final = 20  # choices of layers in a run
CURRENCY: Final = "currency"  # of a share of a step, in the settings
TESTS: Final = 60  # the same, of a method that tests one layer some times before it chooses

Recipe = Callable[[Mapping[str, Any], Cache | None], LayerMethod]


def layers(recipe: Recipe, turns: int = TURNS) -> Callable[[Loaded, Order], Arm]:
    """Make an arm of a recipe that takes settings and a cache, and chooses so many times."""

    def make(loaded: Loaded, order: Order) -> Arm:
        optimizer = optimizer_of(loaded, order.rate)
        chosen = recipe(order.settings, order.cache)
        if order.table is not None:
            chosen = chosen.costing(order.table)
        rows = touched(loaded, optimizer, order) if ROWS in order.settings else None

        def moments(steps: int) -> Schedule | None:
            return every(max(1, steps // turns), total=max(2, steps)) if chosen.moves else None

        def revised(_: int, total: int) -> None:
            schedule = moments(total)
            if schedule is not None:
                handle.reschedule(schedule)

        handle = attach(
            loaded.model, optimizer, chosen, schedule=moments(order.steps), seed=order.seed, record=order.sink
        )
        return Arm(loaded.model, optimizer, handle, rows, revised=revised)

    return make


def table_of(settings: Mapping[str, Setting], loaded: Loaded, batches: Batches) -> CostTable | None:
    """Time the layers where a share of microseconds is the budget. Decided once: a resume has the first table."""
    if settings.get(CURRENCY) != "microseconds":
        return None
    batch, _ = batches.middling()
    return cost_table(loaded.model, batch)


def topk_within(settings: Mapping[str, Setting], most: int, loaded: Loaded) -> dict[str, Setting]:
    """The most layers with at most so many parameters, with what trains above them in the base: norm, output head.

    Raises:
        ConfigError: fewer than the top layer and that have.
    """
    sizes = tops(loaded)
    k = sum(size <= most for size in sizes)
    if not k:
        raise ConfigError(
            f"{left_beside_head(most)}, and the top layer takes {sizes[0]:,}, with what "
            f"trains above it; raise the budget, or take --method lora{SECONDS}"
        )
    return {**settings, "k": k}


def tops(loaded: Loaded, kept: int | None = None) -> list[int]:
    """How many parameters of the base train with the top layer, with the top two, and so on, of the ``kept`` lowest."""
    blocks = blocks_of(loaded.base)
    above = sum(p.numel() for p in blocks.above if p.requires_grad)
    sizes = [sum(p.numel() for p in module.parameters()) for module in blocks.modules[:kept]]
    return [above + total for total in accumulate(reversed(sizes))]


LAYERS: Final[Mapping[str, Kind]] = {
    "autofreeze": Kind(
        layers(lambda s, cache: autofreeze(s["percentile"], cache=cache)), 3e-4, {"percentile": 50.0, ROWS: True},
        moves=True, caches=True,
    ),
    "badam": Kind(layers(lambda s, _: badam(s["order"])), 1e-3, {"order": "random"}, moves=True),
    "egeria": Kind(  # the rate falls to zero in a line, which is no drop: nothing thaws
        layers(lambda s, cache: egeria(s["tolerance"], tests=s["tests"], thaw=math.inf, cache=cache), TESTS), 3e-4,
        {"tolerance": 0.2, "tests": 3, ROWS: True}, moves=True, caches=True,
    ),
    "layer_gradient": Kind(
        layers(lambda s, _: layer_gradient(s["share"])), 1e-3, {"share": 0.6, CURRENCY: "FLOPs"}, moves=True,
    ),
    "lisa": Kind(layers(lambda s, _: lisa(s["layers"])), 3e-4, {"layers": 2, ROWS: True}, moves=True),
    "random_layers": Kind(
        layers(lambda s, _: random_layers(s["share"])), 1e-3, {"share": 0.6, CURRENCY: "FLOPs"}, moves=True
    ),
    "topk": Kind(layers(lambda s, cache: topk(s["k"], cache=cache)), 1e-3, {"k": 2}, topk_within, caches=True),
}  # fmt: skip
