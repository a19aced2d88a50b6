"""Attaching a method over embedding rows: the hooks that go on the model and on its optimizer."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from realloc.bind import check_optimizer_state
from realloc.errors import StateError
from realloc.links import Link, Served
from realloc.methods.row_method import RowMethod
from realloc.observe.ranks import ranks_of
from realloc.plan import StartPlan
from realloc.pool.found import IGNORED, refuse_wrapped
from realloc.pool.rows import BUFFERS, KEY, check_rows, loaded, pools_of, take_out
from realloc.prepare_rows import bind_rows, build_rows, describe_rows, plan_rows, rows_under
from realloc.record.sink import Sink
from realloc.row_handle import RowHandle
from realloc.rows import RowEngine
from realloc.schedule import Schedule

_SERVES: Final[Served] = weakref.WeakKeyDictionary()  # of a model whose rows are attached


@final
@dataclass(eq=False)
class Prepared:
    """What a prepared model knows, and no copy of it."""

    table: StartPlan
    hooks: tuple[RemovableHandle, ...]
    engine: RowEngine | None = None
    plain: list[bool] = field(default_factory=list)  # of a load under way: by table, whether the state is a plain one's


PREPARED: Final = Link[Prepared]("realloc_row_link")


def prepare_rows(root: nn.Module, method: RowMethod, *, dry_run: bool) -> StartPlan:
    """Put the tables on pools before DDP wraps the model; called by `prepare`, which has checked the types."""
    choice = plan_rows(root, method)
    table = describe_rows(choice, method)
    if not dry_run:
        build_rows(choice, method)
        _hook_model(root, table)
    return table


def attach_rows(
    model: nn.Module,
    root: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: RowMethod,
    schedule: Schedule | None,
    seed: int,
    sink: Sink | None,
) -> RowHandle:
    """Let tables train their touched rows; called by `attach`, which has checked the types.

    Rows are held as their ids come: no schedule and nothing random is asked.

    Raises:
        ConfigError: the model or the optimizer does not allow it. Nothing was changed then.
        StateError: attached already, or wrapped before it was prepared.
    """
    pools, prepared = pools_of(root), PREPARED.of(root)
    if pools and (prepared is None or prepared.engine is not None):
        raise StateError(
            "this model's embeddings are on pools already; detach() the first handle, or attach the model that was "
            "prepared, not a copy of it"
        )
    if _SERVES.get(optimizer):
        raise StateError(
            "this optimizer serves the rows of another model; detach() that handle first, or put both models into one "
            "nn.ModuleDict and attach that"
        )
    if prepared is not None:
        bound = bind_rows(pools, optimizer, method)
    else:
        refuse_wrapped(model)
        bound, choice = rows_under(root, optimizer, method)
        prepared = _hook_model(root, describe_rows(choice, method))
    ranks = ranks_of(model)
    engine = RowEngine(bound.pools, optimizer, bound.fresh, ranks=ranks, sink=sink)
    ranks.check_stamp(engine.stamp(), "after attach")
    _hook(root, prepared, engine)
    return RowHandle(engine, prepared.table)


def _hook(root: nn.Module, prepared: Prepared, engine: RowEngine) -> None:
    optimizer, tie = engine.optimizer, engine.tie
    fresh = {pool.parameter: engine.fresh[pool.site.name] for pool in engine.pools}

    def before_load(_: Any, state: dict[str, Any]) -> None:
        check_optimizer_state(optimizer, state, fresh)
        engine.pairing.doubt()

    tie.hook(
        optimizer.register_step_pre_hook(engine.before_step),
        optimizer.register_step_post_hook(engine.after_step),
        optimizer.register_state_dict_pre_hook(lambda _: engine.pairing.renew()),
        optimizer.register_load_state_dict_pre_hook(before_load),
        *prepared.hooks,
    )
    for pool in engine.pools:
        pool.site.hear = engine.hear
    prepared.engine = engine

    def give_back() -> None:
        _unhook_model(root)
        for pool in engine.pools:
            take_out(pool, optimizer, engine.fresh[pool.site.name])
        engine.pairing.wipe()

    tie.until(give_back)
    tie.serve(optimizer, _SERVES)
    if not engine.pairing.written:  # else its state was loaded already
        engine.pairing.write()
        engine.pairing.unchecked = False


def _hook_model(root: nn.Module, table: StartPlan) -> Prepared:
    hooks = (
        root.register_load_state_dict_pre_hook(_before_load),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_post_hook(_after_load),  # type: ignore[no-untyped-call]
    )
    prepared = Prepared(table, hooks)
    PREPARED.put(root, prepared)
    ours = [pool.site.name.removesuffix("weight") + key for pool in pools_of(root) for key in BUFFERS]
    root.__dict__[IGNORED] = [*root.__dict__.get(IGNORED, []), *ours]
    return prepared


def _unhook_model(root: nn.Module) -> None:
    PREPARED.drop(root)
    rest = [name for name in root.__dict__.pop(IGNORED, []) if not name.endswith(BUFFERS)]
    if rest:
        root.__dict__[IGNORED] = rest


def _before_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    prepared = PREPARED.of(module)
    if prepared is None:
        return
    pools = pools_of(module)
    prepared.plain = [check_rows(pool, state, prefix + pool.site.name.removesuffix("weight")) for pool in pools]
    for pool in pools:
        name = prefix + pool.site.name.removesuffix("weight")
        if name + KEY not in state:  # a plain model's state says nothing of them: they stay
            state.update({name + KEY: pool.parameter, **{name + key: pool.module.get_buffer(key) for key in BUFFERS}})
    if prepared.engine is not None:
        prepared.engine.pairing.renew()


def _after_load(module: nn.Module, incompatible: Any) -> None:
    prepared = PREPARED.of(module)
    if prepared is None:
        return
    for pool, plain in zip(pools_of(module), prepared.plain, strict=True):
        loaded(pool, plain)
    if prepared.engine is not None:
        prepared.engine.pairing.doubt()
