"""What an arm is: a trainable model, its optimizer, and what moves in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.allocate.layer_costs import CostTable
from realloc.cache.settings import Cache
from realloc.finetune.aim import Aim
from realloc.finetune.batches import Batches
from realloc.finetune.weights import Loaded
from realloc.handle import Handle
from realloc.layer_handle import LayerHandle
from realloc.record.sink import Sink
from realloc.record.state import Stateful
from realloc.row_handle import RowHandle
from realloc.train.config import Setting

HEAD_RATE: Final = 1e-3  # the least a new head trains at
POOL: Final = "realloc"  # how the names of our own parameters begin


@final
@dataclass(frozen=True, eq=False)
class Arm:
    """What the loop trains. Where a stock library wants to be called in the loop, ``penalty`` and ``moved`` call it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    handle: Handle | LayerHandle | None = None
    rows: RowHandle | None = None  # of the token table, beside whatever else moves
    adapter: Any = None  # peft's model, where there is one
    penalty: Callable[[], Tensor] | None = None  # added to the loss
    moved: Callable[[int], None] | None = None  # called with the step's number, gradients still alive
    revised: Callable[[int, int], None] | None = None  # called with the step and the run's new length, set by seconds
    parts: Mapping[str, Stateful] | None = None  # what a checkpoint must hold beside model and optimizer
    frozen: frozenset[str] = frozenset()  # parameters that never train: a checkpoint leaves them out


@final
@dataclass(frozen=True)
class Order:
    """What an arm is made for. ``steps`` is an estimate where seconds end the run; ``batches`` may be measured."""

    rate: float
    steps: int
    seed: int
    settings: Mapping[str, Setting]
    aim: Aim
    batches: Batches
    cache: Cache | None = None
    sink: Sink | None = None
    table: CostTable | None = None  # of layers whose budget is microseconds


def ledger_of(arm: Arm) -> dict[str, int] | None:
    """Parameters of an arm with ranks of our own: budget = head (what trains in full) + held + parked. None: no ledger.

    The pool's length is a part of the budget, so that the sum is what trains, to the last parameter.
    """
    if not isinstance(arm.handle, Handle):
        return None
    trainable = sum(p.numel() for p in arm.model.parameters() if p.requires_grad)
    handle = arm.handle
    return {
        "budget": trainable, "head": trainable - handle.budget, "held": handle.held, "parked": handle.parked,
    }  # fmt: skip


def parameters_of(arm: Arm) -> int:
    """Parameters of the model that is trained. A pool of embedding rows is none: its rows are the table's."""
    return sum(p.numel() for p in arm.model.parameters()) - (0 if arm.rows is None else arm.rows.budget)


def left_beside_head(most: int) -> str:
    """How each refusal of a budget of parameters begins; a head that alone takes more leaves nothing.

    >>> left_beside_head(-99)
    'the budget leaves 0 parameters beside the head'
    """
    return f"the budget leaves {max(0, most):,} parameters beside the head"


SECONDS: Final = "; for seconds write 60s"  # where a budget of parameters is small, they may have been meant

Maker = Callable[[Loaded, Order], Arm]
Within = Callable[[Mapping[str, Setting], int, Loaded], dict[str, Setting]]


@final
@dataclass(frozen=True)
class Kind:
    """A way to spend the budget: its maker, the rate used when none is given, its settings with their defaults.

    ``within`` finds settings with which at most so many parameters of the base train; None: it has no such setting.
    ``moves``: whether it decides again while it trains, so that it must know about how many steps there are.
    ``caches``: whether it reads a frozen prefix from a cache.
    """

    make: Maker
    rate: float
    settings: Mapping[str, Setting]
    within: Within | None = None
    moves: bool = False
    caches: bool = False


def optimizer_of(loaded: Loaded, rate: float) -> torch.optim.Optimizer:
    """AdamW without decay over all that may ever train: the pre-trained part, and what is new, at its own rate."""
    inside = {id(p) for p in loaded.base.parameters()}
    inside |= {id(p) for name, p in loaded.model.named_parameters() if name.startswith(POOL)}  # a pool of ranks
    old = [p for p in loaded.model.parameters() if id(p) in inside and p.requires_grad]
    new = [p for p in loaded.model.parameters() if id(p) not in inside and p.requires_grad]
    groups = [{"params": old, "lr": rate}, {"params": new, "lr": max(rate, HEAD_RATE)}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0, fused=True)
