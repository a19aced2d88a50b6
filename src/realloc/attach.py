"""prepare() and attach(): what a user calls, checked, and sent to the place for its kind of unit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final, overload

import torch
from torch import nn

from realloc.apply import Target
from realloc.attach_hot_rows import attach_hot_rows
from realloc.attach_layers import attach_layers
from realloc.attach_rates import attach_rates
from realloc.attach_rows import attach_rows, prepare_rows
from realloc.attach_slots import hook_engine, hook_look, hook_model, refuse_twice, waiting_for
from realloc.bind import (
    begin_beside,
    fresh_of,
    packed_weights,
    prepare_beside_under,
    prepare_under,
    prepare_wide_under,
)
from realloc.choose_columns import method_over
from realloc.errors import ConfigError, StateError
from realloc.handle import Handle
from realloc.hot_row_handle import HotRowHandle
from realloc.layer_handle import LayerHandle
from realloc.links import refuse_taken
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
from realloc.observe.ranks import ranks_of, refuse_apart
from realloc.plan import StartPlan
from realloc.pool.found import refuse_own_names, refuse_wrapped, root_of
from realloc.pool.groups import inner
from realloc.prepare import build, describe, plan_start
from realloc.prepare_widths import build_widths, describe_widths, plan_widths
from realloc.rate_handle import RateHandle
from realloc.record.events import EventLog
from realloc.record.shared import log_of
from realloc.record.sink import Sink
from realloc.row_handle import RowHandle
from realloc.schedule import Schedule, required

AnyHandle = Handle | LayerHandle | RowHandle | RateHandle | HotRowHandle


def prepare(
    model: nn.Module,
    method: Method | ColumnMethod | RankMethod | DeltaMethod | WidthMethod | RowMethod,
    *,
    seed: int = 0,
    dry_run: bool = False,
    groups: Callable[[str], Hashable] | None = None,
) -> StartPlan:
    """Replace the chosen weights by sites over pools, before DDP or torch.compile wraps the model.

    Args:
        model: any module; changed in place unless ``dry_run``.
        method: which layers, what density, what start.
        seed: of the start places; ranks must use the same.
        dry_run: only say what would be done.
        groups: weights whose names map to different keys get different pools (one optimizer group each).

    Returns:
        The table of what is (or would be) done; print it.

    Raises:
        ConfigError: the layers, density or values do not allow it. Nothing was changed then.
        StateError: the model is prepared already.
    """
    _check_model(model, method, seed)
    root = root_of(model)
    refuse_own_names(root)
    if isinstance(method, LayerMethod | RateMethod | HotRowMethod):
        when = "of the model that DDP has wrapped, where there is one" if method.moves else "before DDP wraps it"
        raise ConfigError(f"{method.name} replaces nothing in the model; call attach() alone, {when}")
    if not isinstance(method, RowMethod):
        refuse_twice(root, method, "prepared already; attach() it, or detach() its handle first")
    if root is not model:
        raise StateError(f"prepare the model before {type(model).__name__} wraps it")
    if isinstance(method, RowMethod):
        return prepare_rows(root, method, dry_run=dry_run)
    if isinstance(method, RankMethod | DeltaMethod):
        started = begin_beside(model, method, seed)
        if not dry_run:
            started.build(groups)
            hook_model(model, started.table, {})
        return started.table
    if isinstance(method, WidthMethod):
        wide = plan_widths(root, method)
        table = describe_widths(wide, method)
        if not dry_run:
            old = {member.name: weakref.ref(root.get_parameter(member.name)) for member in wide.chosen.space.members}
            build_widths(root, wide, method, seed=seed, group=groups)
            hook_model(model, table, old)
        return table
    if isinstance(method, ColumnMethod):
        method = method_over(root, method, None)
    start = plan_start(model, method, seed)
    table = describe(start, method)
    if not dry_run:
        build(model, start, method, seed=seed, group=groups)
        hook_model(model, table, packed_weights(start))
    return table


@overload
def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method | ColumnMethod | RankMethod | DeltaMethod | WidthMethod,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    record: Sink | str | Path | None = None,
) -> Handle: ...


@overload
def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: LayerMethod,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    record: Sink | str | Path | None = None,
) -> LayerHandle: ...


@overload
def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: RowMethod,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    record: Sink | str | Path | None = None,
) -> RowHandle: ...


@overload
def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: RateMethod,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    record: Sink | str | Path | None = None,
) -> RateHandle: ...


@overload
def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: HotRowMethod,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    record: Sink | str | Path | None = None,
) -> HotRowHandle: ...


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method
    | ColumnMethod
    | RankMethod
    | DeltaMethod
    | WidthMethod
    | LayerMethod
    | RowMethod
    | RateMethod
    | HotRowMethod,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    record: Sink | str | Path | None = None,
) -> AnyHandle:
    """Let a fixed budget move to where it pays while an unchanged loop trains the model.

    Args:
        model: the model the optimizer trains; prepared already, or prepared here. In a run of several processes that
            which DDP wraps, prepared before where parameters are replaced; also below torch.compile.
        optimizer: any elementwise optimizer (SGD, Adam, AdamW, RMSprop, ...); it may have state and schedulers.
        method: a recipe from `realloc.methods`.
        schedule: when moves are due, from `realloc.every`; counted in optimizer steps really taken. A method that
            decides once (`methods.topk`, `methods.llrd`), never moves what it holds (`methods.lora`, `methods.shira`)
            or moves rows as their ids come (`methods.touched_rows`) needs none.
        seed: of start places and random choices.
        record: a path to an event log, or an object with ``decision(event)``.

    Returns:
        The handle: budget, held, moves, summary(), detach().

    Raises:
        ConfigError: bad input; the thing, the value, the remedy. Nothing was changed then.
        StateError: attached twice, wrapped before it was prepared, or several processes without DDP.

    Example:
        >>> import torch, realloc
        >>> from realloc import methods
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> handle = realloc.attach(model, optimizer, methods.rigl(density=0.25),
        ...                         schedule=realloc.every(10, until=0.75, total=100))
        >>> handle.budget, handle.held, handle.parked
        (32, 32, 0)
    """
    _check_model(model, method, seed)
    if schedule is not None:
        required(schedule)
    optimizer = inner(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if method.moves:
        refuse_apart(model, method.name)
    return KINDS[type(method)](model, root_of(model), optimizer, method, schedule, seed, _sink_of(record, model))


def _attach_slots(
    model: nn.Module,
    root: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method | ColumnMethod | RankMethod | DeltaMethod | WidthMethod,
    schedule: Schedule | None,
    seed: int,
    sink: Sink | None,
) -> Handle:
    """Attach a method over units with slots: prepare what is not prepared yet, and hook the engine on."""
    if schedule is None and not isinstance(method, Method) and not method.moves:
        schedule = Schedule(1, 0, 1, 1)
    schedule, unnamed = required(schedule), isinstance(method, ColumnMethod) and method.layer is None
    refuse_own_names(root)
    holdings, method = waiting_for(root, method)
    refuse_taken(optimizer, root=root)
    if holdings is None:
        refuse_wrapped(model)
        if isinstance(method, Method):
            bound = prepare_under(root, optimizer, method, seed)
        elif isinstance(method, WidthMethod):
            bound = prepare_wide_under(root, optimizer, method, seed)
        else:
            bound = prepare_beside_under(root, optimizer, method, seed)
        table, holdings, fresh = bound.table, bound.holdings, bound.fresh
        hook_model(root, table, bound.old, bound.order)
    else:
        assert holdings.start is not None
        table, fresh = holdings.start, fresh_of(optimizer, holdings)
    moving = method.rule_at(table.density) if isinstance(method, DeltaMethod) else method
    handle = hook_engine(model, Target(holdings, optimizer, fresh, moving.moments), moving, schedule, table, sink)
    if unnamed:
        hook_look(handle)
    return handle


# what attaches each kind of method: one line a kind
KINDS: Final[dict[type, Callable[..., AnyHandle]]] = {
    Method: _attach_slots,
    ColumnMethod: _attach_slots,
    RankMethod: _attach_slots,
    WidthMethod: _attach_slots,
    DeltaMethod: _attach_slots,
    LayerMethod: attach_layers,
    RowMethod: attach_rows,
    RateMethod: attach_rates,
    HotRowMethod: attach_hot_rows,
}


def _check_model(model: nn.Module, method: object, seed: int) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    if isinstance(method, ExampleMethod):
        raise ConfigError(f"{method.name} chooses examples, not parts of a model; give it to realloc.Visits")
    if type(method) not in KINDS:
        raise ConfigError(f"method is {method!r}; call a recipe, such as realloc.methods.rigl(density=0.1)")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ConfigError(f"seed is {seed!r}; use an integer of at most 63 bits")


def _sink_of(record: Sink | str | Path | None, model: nn.Module) -> Sink | None:
    if isinstance(record, (str, Path)):
        record = log_of(root_of(model), record)
    if isinstance(record, EventLog) and not ranks_of(model).first:
        return None  # one line for each decision, not one for each rank
    if record is not None and not callable(getattr(record, "decision", None)):
        raise ConfigError(f"record is {record!r}; give a path, or an object with decision(event)")
    return record
