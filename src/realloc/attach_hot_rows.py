"""Attaching a method over rows that ids own: what is refused, and the hooks that go on look-ups and optimizer."""

from __future__ import annotations

import weakref
from typing import Final, final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError, StateError, plain
from realloc.hot_row_handle import HotRowHandle, stores_of
from realloc.hot_rows import HotRowEngine
from realloc.kernels.seek import register
from realloc.links import Hook, Served, refuse_taken
from realloc.methods.hot_row_method import HotRowMethod
from realloc.nn.rows import Rows
from realloc.observe.ranks import ranks_of
from realloc.pool.hot_rows import HotRows, group_of
from realloc.pool.probe import fresh_state, sparse_state
from realloc.record.sink import Sink
from realloc.schedule import Schedule, required

SERVING: Final[Served] = weakref.WeakKeyDictionary()  # whose groups are marked with owners
REMEDY: Final = "Take an elementwise optimizer such as AdamW or SGD, or leave attach out: hashing needs none"
SPARSE: Final = "Take SparseAdam, Adagrad or plain SGD, or build the rows without sparse=True"


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
    if not any(store.hear is not None for store in stores.values()):  # else `_check` says which
        refuse_taken(optimizer, SERVING)
    fresh = [_check(name, store, optimizer, method) for name, store in stores.items()]
    pools = tuple(HotRows(name, store, some) for (name, store), some in zip(stores.items(), fresh, strict=True))
    ranks = ranks_of(model)
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
    for number, (store, tables) in enumerate(stores_of(root)):
        first = next(iter(tables.values()))
        stores[first] = store
        for table in range(len(store.enrolled)):  # one that lies outside this module is known by its number
            names[number, table] = tables.get(table, f"{first}.store[{table}]")
    if not stores:
        raise ConfigError(
            f"{type(root).__name__} has no realloc.nn.Embedding or EmbeddingBag, whose rows could move; build it with "
            "them in place of torch.nn's"
        )
    return stores, names


def _check(name: str, store: Rows, optimizer: torch.optim.Optimizer, method: HotRowMethod) -> dict[str, float]:
    """Refuse a store whose rows cannot move. Returns what a fresh optimizer writes of a row, by key."""
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
    told = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.SparseAdam) and not store.sparse:
        raise ConfigError(f"{told} takes sparse gradients, and those of {where} are dense; build Rows(sparse=True)")
    fresh = sparse_state(optimizer, group, store.weight, SPARSE) if store.sparse else {}
    if not isinstance(optimizer, torch.optim.SparseAdam):  # elementwise, but it steps no dense trial
        fresh = fresh_state(optimizer, group, store.weight, REMEDY)
    if len(fresh) > store.split.costs.moments:
        raise ConfigError(
            f"{told} keeps {len(fresh)} numbers for each weight, and the budget of {where} has bytes for "
            f"{store.split.costs.moments}; build it with realloc.nn.Rows(..., moments={len(fresh)})"
        )
    return fresh


@final
class _Ear:
    """Told of what is looked up, and puts a hook on it."""

    def __init__(self, engine: HotRowEngine, place: int) -> None:
        self._engine, self._place = engine, place
        self._store = engine.pools[place].store
        self._trained = self._store.weight
        self.number = register(self)

    @property
    def listens(self) -> bool:
        """Whether the step that is under way is noted, and not of a `functional_call` with weights of its own."""
        return self._store.weight is self._trained and self._engine.looks(self._place)

    def __call__(self, table: int, ids: Tensor, found: Tensor) -> None:
        found.register_hook(lambda gradient: self.note(table, ids, gradient))  # type: ignore[no-untyped-call]

    def note(self, table: int, ids: Tensor, gradient: Tensor) -> None:
        """In a backward."""
        self._engine.note(self._place, table, ids, gradient)


def _hook(engine: HotRowEngine) -> None:
    optimizer, tie, loaded = engine.optimizer, engine.tie, Hook(engine.pairing.doubt)
    tie.serve(optimizer, SERVING)
    tie.hook(
        optimizer.register_step_pre_hook(engine.before_step),
        optimizer.register_step_post_hook(engine.after_step),
        optimizer.register_state_dict_pre_hook(lambda _: engine.pairing.renew()),
        optimizer.register_load_state_dict_post_hook(loaded),
    )
    for number, (pool, heard) in enumerate(zip(engine.pools, engine.heard, strict=True)):
        arrive = Hook(heard.arrive)
        tie.hook(pool.store.register_load_state_dict_post_hook(loaded))  # type: ignore[no-untyped-call]
        tie.hook(pool.store.weight.register_post_accumulate_grad_hook(arrive))  # type: ignore[no-untyped-call]
        pool.store.hear = _Ear(engine, number)

    def still() -> None:
        for pool in engine.pools:
            pool.store.hear = None

    tie.until(still)
