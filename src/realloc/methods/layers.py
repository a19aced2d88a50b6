"""A method that gives layers the right to train: which ones, in turn, under a budget of layers or of FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch

from realloc.allocate.layer_costs import TIMED, CostTable
from realloc.cache.settings import Cache
from realloc.errors import ConfigError

Chosen = tuple[int, ...]
State = Literal["drop", "keep"]


@final
@dataclass(frozen=True, eq=False)
class Turn:
    """What a method may know when layers are chosen. Layers count from the input: 0 is the lowest."""

    count: int  # layers in all
    on: Chosen  # those that train now, ascending; at the start none
    number: int  # of this decision; 0 is the start
    phase: float  # 0 at the schedule's begin, 1 at its end
    draw: Callable[[int], torch.Generator]  # random numbers by any number; the same on every rank and after a resume
    budget: float  # cost of a step as a share of a step in which every layer trains; 1: no bound
    cost: Callable[[Chosen], float]  # the same share, for layers that would train
    gradient: tuple[float, ...] | None = None  # squared norm of the gradient, by layer; asked for by "gradient"
    change: tuple[float | None, ...] | None = None  # relative change of the summed gradient; asked for by "change"
    plasticity: tuple[float, ...] = ()  # of the lowest layer that trains, at each test since it is that; "plasticity"
    rate: float = 1.0  # learning rate, as a share of the highest at a test since all layers trained; by "plasticity"
    thaws: int = 0  # how often all came back; by "plasticity"


@final
@dataclass(frozen=True)
class LayerMethod:
    """The parts of one way to choose the layers that train. The head trains always.

    Args:
        name: as users call it.
        choose: from a `Turn` to the layers that train until the next one.
        reference: arXiv number of its paper.
        moves: whether it chooses again after the start, at the schedule's steps.
        needs: of a `Turn`, what must be measured: "gradient" (of every layer, in the step of a decision), "change", or
            "plasticity" (of the lowest layer that trains, in the same step; its rule of thawing reads the rate too).
        embeddings: whether what runs below the first layer trains: never, while the lowest layer does, or always.
        state: what becomes of the optimizer state of a layer that stops: "drop" or "keep".
        budget: share of the cost of a step in which every layer trains, 0 < budget <= 1.
        cache: of the activations of the layers below the lowest one that trains; None: they are computed each time.
        prefix_dropout: "off" (what is frozen is deterministic) or "keep" (then nothing can be cached).
        costs: microseconds of each layer, which the ledger charges; None: FLOPs of one token.
    """

    name: str
    choose: Callable[[Turn], Chosen]
    reference: str = ""
    moves: bool = False
    needs: frozenset[str] = frozenset()
    embeddings: Literal["never", "lowest", "always"] = "never"
    state: State = "drop"
    budget: float = 1.0
    cache: Cache | None = field(default_factory=Cache)
    prefix_dropout: Literal["off", "keep"] = "off"
    costs: CostTable | None = None

    def __post_init__(self) -> None:
        if self.cache is not None and not isinstance(self.cache, Cache):
            raise ConfigError(f"cache is {self.cache!r}; use realloc.Cache(limit='500MB'), or None for no cache")
        if self.prefix_dropout not in ("off", "keep"):
            raise ConfigError(f"prefix_dropout is {self.prefix_dropout!r}; use 'off' or 'keep'")
        share = self.budget
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigError(f"budget is {share!r}; it is a share of a full step's cost: 0 < budget <= 1, such as 0.5")
        if self.state not in ("drop", "keep"):
            raise ConfigError(f"state is {self.state!r}; use 'drop' or 'keep'")

    def on(self, *, cache: Cache | None = None, prefix_dropout: Literal["off", "keep"] = "off") -> LayerMethod:
        """The same method with another cache (None: none), or with the dropout of frozen layers kept on."""
        return replace(self, cache=cache, prefix_dropout=prefix_dropout)

    @property
    def rises(self) -> bool:
        """Whether more layers from the input on may be frozen later than at the start."""
        return self.moves and self.embeddings != "always"

    def costing(self, table: CostTable) -> LayerMethod:
        """The same method with its budget in microseconds of a table from `realloc.cost_table`, in place of FLOPs.

        Raises:
            ConfigError: no such table.
        """
        if not isinstance(table, CostTable) or table.unit != TIMED:
            raise ConfigError(f"costing() takes the table that realloc.cost_table(model, batch) makes; got {table!r}")
        return replace(self, costs=table)


def count_of(name: str, value: int, least: int = 1) -> int:
    """Refuse what is not a number of layers."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it is a number of layers, {least} or more")
    return value


def among(name: str, value: int, turn: Turn) -> int:
    """Refuse more layers than the model has."""
    if value > turn.count:
        raise ConfigError(f"{name} is {value} and the model has {turn.count} layers; take {turn.count} or fewer")
    return value
