"""Attaching a method over rows that ids own: what is refused, and the hooks that go on look-ups and optimizer."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError, StateError, plain
from realloc.hot_row_handle import HotRowHandle
from realloc.hot_rows import HotRowEngine
from realloc.methods.hot_row_method import HotRowMethod
from realloc.nn.bag import EmbeddingBag
from realloc.nn.embedding import Embedding
from realloc.nn.rows import Hear, Rows
from realloc.observe.ranks import ranks_of
from realloc.pool.hot_rows import HotRows, group_of
from realloc.pool.probe import fresh_state
from realloc.record.sink import Sink
from realloc.schedule import Schedule, required

REMEDY: Final = "Take an elementwise optimizer such as AdamW or SGD, or leave attach out: hashing needs none"


def attach_hot_rows(
    model: nn.Module,
    root: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: HotRowMethod,
    schedule: Schedule | None,
    seed: int,
    sink: Sink | None,
) -> HotRowHandle:
    """Let ids own rows; called by `attach`, which has checked the types.

    Raises:
        ConfigError: the model, the optimizer or the schedule does not allow it. Nothing was changed then.
        StateError: attached already.
    """
    schedule, (stores, names) = required(schedule), _tables(root)
    for name, store in stores.items():
        _check(name, store, optimizer, method)
    pools, ranks = tuple(HotRows(name, store) for name, store in stores.items()), ranks_of(model)
    engine = HotRowEngine(pools, names, optimizer, method, schedule, sink, ranks)
    for pool in pools:
        pool.begin(seed)
    for pool in pools:
        ranks.check_stamp(pool.whole_stamp, "at attach()")
    engine.check()
    _hook(engine)
    return HotRowHandle(engine)


def _tables(root: nn.Module) -> tuple[dict[str, Rows], dict[tuple[int, int], str]]:
    """Stores by the name of their first table, and the tables' names by (number of the store, number of the table)."""
    stores: dict[str, Rows] = {}
    names: dict[tuple[int, int], str] = {}
    for name, module in root.named_modules():
        if isinstance(module, Embedding | EmbeddingBag):
            known = next((i for i, store in enumerate(stores.values()) if store is module.store), len(stores))
            if known == len(stores):
                stores[name] = module.store
            names[known, module.table] = name
    if not stores:
        raise ConfigError(
            f"{type(root).__name__} has no realloc.nn.Embedding or EmbeddingBag, whose rows could move; build it with "
            "them in place of torch.nn's"
        )
    return stores, names


def _check(name: str, store: Rows, optimizer: torch.optim.Optimizer, method: HotRowMethod) -> None:
    """Refuse a store whose rows cannot move."""
    where = plain(name) or "the embedding"
    if store.hear is not None:
        raise StateError(f"rows of {where} are moved already; detach() that handle before attaching again")
    if not store.split.own:
        raise ConfigError(f"{where} was built with own=0: no id can own a row; build it with own=0.5")
    if method.score.needs_directions and not store.directions:
        raise ConfigError(
            f"the score {method.score.name!r} compares directions, and {where} keeps none; build it with directions=8"
        )
    group = group_of(optimizer, store.weight)
    if group is None:
        raise ConfigError(f"the optimizer does not have the rows of {where}; make it of the model's parameters")
    if not isinstance(optimizer, torch.optim.SparseAdam):  # elementwise, but it steps no dense trial
        fresh_state(optimizer, group, store.weight, REMEDY)


def _listener(engine: HotRowEngine, number: int) -> Hear:
    def hear(table: int, ids: Tensor, found: Tensor) -> None:
        found.register_hook(lambda gradient: engine.note(number, table, ids, gradient))  # type: ignore[no-untyped-call]

    return hear


def _hook(engine: HotRowEngine) -> None:
    optimizer, tie = engine.optimizer, engine.tie

    def loaded(*_: Any) -> None:
        engine.unchecked = True

    tie.hook(
        optimizer.register_step_pre_hook(engine.before_step),
        optimizer.register_step_post_hook(engine.after_step),
        optimizer.register_state_dict_pre_hook(lambda _: engine.mark()),
        optimizer.register_load_state_dict_post_hook(loaded),
    )
    for number, pool in enumerate(engine.pools):
        tie.hook(pool.store.register_load_state_dict_post_hook(loaded))  # type: ignore[no-untyped-call]
        pool.store.hear = _listener(engine, number)

    def still() -> None:
        for pool in engine.pools:
            pool.store.hear = None

    tie.until(still)
