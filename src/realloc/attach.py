"""prepare() and attach(): the only place that installs hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from realloc.apply import Target, mark_groups
from realloc.attach_layers import attach_layers
from realloc.attach_rows import attach_rows, prepare_rows
from realloc.bind import (
    begin_beside,
    check_optimizer_state,
    fresh_of,
    packed_weights,
    prepare_beside_under,
    prepare_under,
)
from realloc.engine import Engine
from realloc.errors import ConfigError, StateError
from realloc.handle import Handle
from realloc.layer_handle import LayerHandle
from realloc.links import LINK, TAKEN, Hook, Link, refuse_taken
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.layers import LayerMethod
from realloc.methods.method import Method
from realloc.methods.rank_method import RankMethod
from realloc.methods.row_method import RowMethod
from realloc.observe.ranks import ranks_of
from realloc.plan import StartPlan
from realloc.pool.groups import carry_out, inner, replace, sort_groups
from realloc.pool.holdings import find, root_of
from realloc.pool.restore import densify
from realloc.prepare import build, describe, plan_start
from realloc.record.events import EventLog
from realloc.record.sink import Sink
from realloc.row_handle import RowHandle
from realloc.schedule import Schedule


def prepare(
    model: nn.Module,
    method: Method | RankMethod | DeltaMethod | RowMethod,
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
    if isinstance(method, LayerMethod):
        raise ConfigError(f"{method.name} replaces nothing in the model; call attach() alone, before DDP wraps it")
    root = root_of(model)
    if not isinstance(method, RowMethod) and find(model) is not None:
        raise StateError("this model is prepared already; attach() it, or detach() its handle first")
    if root is not model:
        raise StateError(f"prepare the model before {type(model).__name__} wraps it")
    if isinstance(method, RowMethod):
        return prepare_rows(root, method, dry_run=dry_run)
    if isinstance(method, RankMethod | DeltaMethod):
        started = begin_beside(model, method, seed)
        if not dry_run:
            started.build(groups)
            _hook_model(model, started.table, {})
        return started.table
    start = plan_start(model, method, seed)
    table = describe(start, method)
    if not dry_run:
        build(model, start, method, seed=seed, group=groups)
        _hook_model(model, table, packed_weights(start))
    return table


@overload
def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method | RankMethod | DeltaMethod,
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


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method | RankMethod | DeltaMethod | LayerMethod | RowMethod,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    record: Sink | str | Path | None = None,
) -> Handle | LayerHandle | RowHandle:
    """Let a fixed budget move to where it pays while an unchanged loop trains the model.

    Args:
        model: the model the optimizer trains; prepared already, or prepared here. May be wrapped by DDP.
        optimizer: any elementwise optimizer (SGD, Adam, AdamW, RMSprop, ...); it may have state and schedulers.
        method: a recipe from `realloc.methods`.
        schedule: when moves are due, from `realloc.every`; counted in optimizer steps really taken. A method that never
            chooses layers again (`methods.topk`), never moves what it holds (`methods.lora`, `methods.shira`), or moves
            rows as their ids come (`methods.touched_rows`), needs none.
        seed: of start places and random choices.
        record: a path to an event log, or an object with ``decision(event)``.

    Returns:
        The handle: budget, held, moves, summary(), detach().

    Raises:
        ConfigError: bad input; the thing, the value, the remedy. Nothing was changed then.
        StateError: attached twice.

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
    if schedule is None and isinstance(method, RankMethod | DeltaMethod) and not method.moves:
        schedule = Schedule(1, 0, 1, 1)
    still = isinstance(method, RowMethod) or (isinstance(method, LayerMethod) and schedule is None)
    if not still and not isinstance(schedule, Schedule):
        raise ConfigError(f"schedule is {schedule!r}; make one with realloc.every(n, until=..., total=...)")
    optimizer = inner(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if isinstance(method, RowMethod):
        return attach_rows(model, root_of(model), optimizer, method, _sink_of(record))
    sink = _sink_of(record)
    root, holdings = root_of(model), find(model)
    if isinstance(method, LayerMethod):
        if holdings is not None:
            raise StateError("this model's weights move already; detach() that handle before attaching its layers")
        return attach_layers(model, root, optimizer, method, schedule, seed, sink)
    refuse_taken(optimizer)
    assert schedule is not None
    if holdings is None:
        if isinstance(method, RankMethod | DeltaMethod):
            bound = prepare_beside_under(root, optimizer, method, seed)
        else:
            bound = prepare_under(root, optimizer, method, seed)
        table, holdings, fresh = bound.table, bound.holdings, bound.fresh
        _hook_model(root, table, bound.old)
        root.__dict__[LINK].order = bound.order
    else:
        if root.__dict__[LINK].engine is not None:
            raise StateError("this model is attached already; detach() the first handle before attaching again")
        table = root.__dict__["realloc_start"]
        if (table.method, table.asked) != (method.name, method.asked):
            raise ConfigError(
                f"the model was prepared for {table.method} at {table.asked}, attach got {method.name} at "
                f"{method.asked}; pass the same method to both"
            )
        fresh = fresh_of(optimizer, holdings)
    moving = method.rule_at(table.density) if isinstance(method, DeltaMethod) else method
    return _hook(model, Target(holdings, optimizer, fresh, moving.moments), moving, schedule, table, sink)


def _check_model(
    model: nn.Module, method: Method | RankMethod | DeltaMethod | LayerMethod | RowMethod, seed: int
) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    if not isinstance(method, Method | RankMethod | DeltaMethod | LayerMethod | RowMethod):
        raise ConfigError(f"method is {method!r}; call a recipe, such as realloc.methods.rigl(density=0.1)")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ConfigError(f"seed is {seed!r}; use an integer of at most 63 bits")


def _sink_of(record: Sink | str | Path | None) -> Sink | None:
    if isinstance(record, (str, Path)):
        return EventLog(Path(record))
    if record is not None and not callable(getattr(record, "decision", None)):
        raise ConfigError(f"record is {record!r}; give a path, or an object with decision(event)")
    return record


# hooks ----------------------------------------------------------------------------------------------------------


def _open(module: nn.Module, args: Any) -> None:
    if not torch.compiler.is_compiling():
        holdings = find(module)
        if holdings is not None:
            holdings.open()


def _close(module: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling():
        holdings = find(module)
        if holdings is not None:
            holdings.close()


def _before_save(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    holdings = find(module)
    if holdings is not None:
        holdings.stamp()


def _before_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    holdings = find(module)
    budget = None if holdings is None else holdings.check_state(state, prefix)
    if holdings is None or budget is None:
        return
    engine = module.__dict__[LINK].engine
    if engine is not None and engine.ranks.several:
        raise StateError("the state is that of a compacted model, and DDP cannot see shapes change; load it before DDP")
    holdings.shorten(state, prefix, budget, None if engine is None else engine.target.optimizer)


def _after_load(module: nn.Module, incompatible: Any) -> None:
    holdings = find(module)
    if holdings is None:
        return
    if not any(key.endswith("realloc_book") for key in incompatible.missing_keys):
        holdings.loaded()
    engine = module.__dict__[LINK].engine
    if engine is not None:
        engine.unchecked = True
        engine.arm()


def _hook_model(root: nn.Module, table: StartPlan, old: dict[str, weakref.ref[nn.Parameter]]) -> None:
    hooks = [
        root.register_forward_pre_hook(_open),
        root.register_forward_hook(_close, always_call=True),
        root.register_state_dict_pre_hook(_before_save),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_pre_hook(_before_load),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_post_hook(_after_load),  # type: ignore[no-untyped-call]
    ]
    root.__dict__.update({"realloc_hooks": hooks, "realloc_start": table, LINK: Link(old)})
    ignored = [*root._buffers, *getattr(root, "_ddp_params_and_buffers_to_ignore", [])]
    root._ddp_params_and_buffers_to_ignore = [n for n in ignored if n.startswith("realloc_") or n not in root._buffers]  # type: ignore[assignment]


def _hook(
    model: nn.Module,
    target: Target,
    method: Method | RankMethod,
    schedule: Schedule,
    table: StartPlan,
    sink: Sink | None,
) -> Handle:
    holdings, optimizer = target.holdings, target.optimizer
    root = holdings.owner
    hooks: list[Any] = []

    def undo() -> None:
        for hook in hooks:
            hook.remove()
        order, dense = root.__dict__[LINK].order, {}
        for parameter, parts in densify(holdings):
            carry_out(optimizer, parts, parameter, target.fresh[parameter])
            replace(optimizer, [("", parameter)], [(part.name, part.parameter) for part in parts])
            dense.update({part.name: part.parameter for part in parts})
        sort_groups(optimizer, [dense[p] if isinstance(p, str) else p for p in order] or list(root.parameters()))
        for group in optimizer.param_groups:
            group.pop("realloc_stamp", None)
        TAKEN.discard(optimizer)

    ranks = ranks_of(model)
    ranks.check_stamp(holdings.stamp(), "after attach")
    if isinstance(sink, EventLog) and not ranks.first:
        sink = None  # one line for each decision, not one for each rank
    engine = Engine(target, method, schedule, ranks=ranks, sink=sink, undo=undo, old=root.__dict__[LINK].old)

    def before_load(_: Any, state: dict[str, Any]) -> None:
        check_optimizer_state(optimizer, state, target.fresh)
        engine.unchecked = True

    hooks += [
        optimizer.register_step_pre_hook(engine.before_step),
        optimizer.register_step_post_hook(engine.after_step),
        optimizer.register_load_state_dict_pre_hook(before_load),
    ]
    for backwards in engine.backwards:
        hooks.append(backwards.pool.parameter.register_post_accumulate_grad_hook(backwards))  # type: ignore[no-untyped-call]
    for site in holdings.masked.sites if holdings.masked is not None else ():
        hooks.append(site.parameter.register_hook(Hook(site.begin)))  # type: ignore[no-untyped-call]
        hooks.append(site.parameter.register_post_accumulate_grad_hook(Hook(site.collect)))  # type: ignore[no-untyped-call]
    root.__dict__[LINK].engine = engine
    TAKEN.add(optimizer)
    if not any("realloc_stamp" in group for group in optimizer.param_groups):  # else its state was loaded already
        mark_groups(target, holdings.stamp())
    return Handle(engine, table)
