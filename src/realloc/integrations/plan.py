"""What a framework's callback is told: a method, when it moves, and the seed; and how it puts a model in order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from realloc.attach import KINDS, attach, prepare
from realloc.attach_layers import register_layers
from realloc.attach_rates import await_rates
from realloc.cache.settings import TOLD
from realloc.errors import ConfigError, StateError
from realloc.handle import Handle
from realloc.hot_row_handle import HotRowHandle
from realloc.layer_handle import LayerHandle
from realloc.methods.column_method import ColumnMethod
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.example_method import ExampleMethod
from realloc.methods.hot_row_method import HotRowMethod
from realloc.methods.layers import LayerMethod
from realloc.methods.method import Method
from realloc.methods.rank_method import RankMethod
from realloc.methods.rate_method import RateMethod
from realloc.methods.row_method import RowMethod
from realloc.methods.width_method import WidthMethod
from realloc.observe.ranks import Ranks, ranks_of
from realloc.rate_handle import RateHandle
from realloc.record.sink import Sink
from realloc.row_handle import RowHandle
from realloc.schedule import Schedule, every

Replacing = Method | ColumnMethod | RankMethod | DeltaMethod | WidthMethod | RowMethod  # they put sites into the model
AnyMethod = Replacing | LayerMethod | RateMethod | HotRowMethod
AnyHandle = Handle | LayerHandle | RowHandle | RateHandle | HotRowHandle


@final
@dataclass(frozen=True)
class Terms:
    """One method for a run whose length the framework knows."""

    method: AnyMethod
    every: int | None
    begin: int | float
    until: int | float
    seed: int
    record: Sink | str | Path | None

    def __post_init__(self) -> None:
        if isinstance(self.method, ExampleMethod):
            raise ConfigError(
                f"{self.method.name} chooses examples, not parts of a model; give it to realloc.Visits, which is the "
                "sampler of a loader"
            )
        if type(self.method) not in KINDS:
            raise ConfigError(f"method is {self.method!r}; call a recipe, such as realloc.methods.topk(2)")
        if self.every is None and (isinstance(self.method, RankMethod) or self.timed):
            raise ConfigError(f"{self.method.name} moves; say how often: every=100 optimizer steps")

    @property
    def timed(self) -> bool:
        """Whether it moves by a schedule; embedding rows come and go with their ids."""
        return self.method.moves and not isinstance(self.method, RowMethod)

    def prepare(self, model: nn.Module) -> None:
        """Before an optimizer exists and before a checkpoint is loaded."""
        if isinstance(self.method, LayerMethod):
            register_layers(model, self.method, self.seed)
        elif isinstance(self.method, RateMethod):
            await_rates(model)
        elif not isinstance(self.method, HotRowMethod):  # its embeddings are in the model, with all that is kept
            prepare(model, self.method, seed=self.seed)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, total: float, data: Any = None) -> AnyHandle:
        """Once the optimizer exists and a checkpoint, if there is one, is loaded.

        Args:
            model: that trains.
            optimizer: its optimizer.
            total: steps of the run.
            data: the framework's loader; a cache wants to know how many examples an epoch has.

        Raises:
            ConfigError: a method that moves, and a run without an end.
            StateError: several processes, and a method that moves: a callback is given the model below DDP.
        """
        if self.method.moves and ranks_of(model) == Ranks() and _several():
            count = torch.distributed.get_world_size()
            raise StateError(
                f"{self.method.name} moves, and {count} processes train: a callback is given the model below "
                "DistributedDataParallel, so its ranks could not decide alike; train with one process, or call "
                "realloc.attach() on the wrapped model in a loop of your own"
            )
        schedule = None if self.every is None else self._schedule(self.every, total)
        method = _waiting(self.method) if _examples(data) else self.method
        return attach(model, optimizer, method, schedule=schedule, seed=self.seed, record=self.record)

    def go_on(self, handle: AnyHandle, begun: int, total: float) -> None:
        """Before another run with the handle of an earlier one: move by the length of this one.

        Args:
            handle: that `attach` returned.
            begun: step from which the run goes on; 0: it begins anew.
            total: steps of the run.

        Raises:
            StateError: it begins anew where moves were planned, and counted, for the earlier one.
        """
        if not self.timed or self.every is None or isinstance(handle, RowHandle):
            return
        if not begun and handle.steps:
            raise StateError(
                f"this callback has been through {handle.steps:,} steps of an earlier run, for which the moves of "
                f"{self.method.name} were planned; go on from its checkpoint, if with more epochs: "
                "train(resume_from_checkpoint=True), or call its handle.detach() and make a new Trainer with a new "
                "ReallocCallback"
            )
        handle.reschedule(self._schedule(self.every, total))

    def _schedule(self, gap: int, total: float) -> Schedule:
        if not math.isfinite(total):
            raise ConfigError(
                f"{self.method.name} moves by a schedule, and this run has no end (max_epochs=-1?); give the "
                "Trainer max_steps or max_epochs, which are the schedule's total"
            )
        steps = max(1, int(total))
        return every(min(gap, steps), begin=self.begin, until=self.until, total=steps)


def epoch_over(handle: AnyHandle | None, data: Any) -> None:
    """Tell a handle, after an epoch, how many examples of a loader's dataset one process has seen in it."""
    count = _examples(data)
    if count and isinstance(handle, LayerHandle):
        handle.epoch_over(count)


def _waiting(method: AnyMethod) -> AnyMethod:
    """The method, its cache waiting to be told how many rows an epoch has, where the user did not say."""
    if not isinstance(method, LayerMethod) or method.cache is None or method.cache.epoch is not None:
        return method
    return replace(method, cache=replace(method.cache, epoch=TOLD))


def _examples(data: Any) -> int:
    """Of one epoch in one process; 0: nobody knows."""
    try:
        return -(-len(data.dataset) // (torch.distributed.get_world_size() if _several() else 1))
    except (AttributeError, TypeError):  # a stream, or a loader of another kind
        return 0


def _several() -> bool:
    known = torch.distributed.is_available() and torch.distributed.is_initialized()
    return known and torch.distributed.get_world_size() > 1
