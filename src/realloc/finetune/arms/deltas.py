"""Arms with sparse deltas over the linear layers of the blocks: in one pool, with a budget of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from realloc.errors import ConfigError
from realloc.finetune.arms.arm import SECONDS, Arm, Kind, Order, left_beside_head
from realloc.finetune.arms.peft_lora import linear_of
from realloc.finetune.arms.ranks import beside
from realloc.finetune.weights import Loaded
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.shira import shira
from realloc.methods.spiel import spiel
from realloc.train.config import Setting

APART: Final = 10  # steps between moves at least: a move looks at five
SHARE: Final = 0.03  # of the weights of the layers: on MiniLM about what LoRA of rank 8 takes

Recipe = Callable[[int | None, float | None, Mapping[str, Any]], DeltaMethod]


def deltas(recipe: Recipe, rate: float, more: Mapping[str, Setting], *, moves: bool) -> Kind:
    """Make an arm of a recipe. ``parameters``: how many the deltas hold; 0: the ``share`` of the layers' weights."""

    def make(loaded: Loaded, order: Order) -> Arm:
        settings: Mapping[str, Any] = order.settings
        count = settings["parameters"]
        return beside(loaded, order, recipe(count or None, None if count else settings["share"], settings), APART)

    return Kind(make, rate, {"share": SHARE, "parameters": 0, **more}, parameters_within, moves=moves)


def parameters_within(settings: Mapping[str, Setting], most: int, loaded: Loaded) -> dict[str, Setting]:
    """So many parameters, to the last one.

    Raises:
        ConfigError: none is left beside the head, or more than the layers have.
    """
    whole = sum(module.weight.numel() for _, module in linear_of(loaded))
    if most < 1:
        raise ConfigError(f"{left_beside_head(most)}; raise it by {1 - most:,} or more{SECONDS}")
    if most > whole:
        raise ConfigError(
            f"{left_beside_head(most)}, and the linear layers have {whole:,} weights; "
            f"lower the budget by {most - whole:,} or more, or take --method full"
        )
    return {**settings, "parameters": most}


DELTAS: Final[Mapping[str, Kind]] = {
    "shira": deltas(
        lambda n, share, more: shira(n, density=share, by=more["by"]), 3e-3, {"by": "random"}, moves=False
    ),
    # places of large gradients change more of the function at each step, and diverge where random ones learn
    "spiel": deltas(
        lambda n, share, more: spiel(n, density=share, drop=more["drop"], begin="gradient"), 1e-3, {"drop": 0.2},
        moves=True,
    ),
}  # fmt: skip
