"""The hooks of units with slots: on the model, on its pools and on the optimizer, and what takes them back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.apply import Target
from realloc.bind import check_optimizer_state
from realloc.decider import Decider
from realloc.engine import Engine
from realloc.errors import StateError
from realloc.handle import Handle
from realloc.links import Hook, Link
from realloc.methods.method import Method
from realloc.methods.rank_method import RankMethod
from realloc.methods.width_method import WidthMethod
from realloc.observe.ranks import ranks_of
from realloc.observe.upstream import FirstLook
from realloc.plan import StartPlan
from realloc.pool.groups import carry_out, replace, sort_groups
from realloc.pool.holdings import find
from realloc.pool.restore import densify
from realloc.rank_decider import RankDecider
from realloc.record.sink import Sink
from realloc.schedule import Schedule
from realloc.weight_decider import WeightDecider
from realloc.width_decider import WidthDecider

# who decides about the pools of each kind of method: one line a kind
DECIDERS: Final[dict[type, Callable[..., Decider]]] = {
    Method: WeightDecider,
    RankMethod: RankDecider,
    WidthMethod: WidthDecider,
}


@final
@dataclass(eq=False)
class Prepared:
    """What a prepared model knows, and no copy of it: what it was before, and who moves its units."""

    old: dict[str, weakref.ref[nn.Parameter]]  # the dense weights that went into pools
    order: Sequence[Tensor | str] = ()  # the optimizer's parameters before attach; a packed weight by its name
    engine: Engine | None = None


PREPARED: Final = Link[Prepared]("realloc_link")


def engine_of(root: nn.Module) -> Engine | None:
    """The engine of an attached model."""
    prepared = PREPARED.of(root)
    return None if prepared is None else prepared.engine


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
    engine = engine_of(module)
    if engine is not None and engine.ranks.several:
        raise StateError("the state is that of a compacted model, and DDP cannot see shapes change; load it before DDP")
    holdings.shorten(state, prefix, budget, None if engine is None else engine.target.optimizer)


def _after_load(module: nn.Module, incompatible: Any) -> None:
    holdings = find(module)
    if holdings is None:
        return
    if not any(key.endswith("realloc_book") for key in incompatible.missing_keys):
        holdings.loaded()
    engine = engine_of(module)
    if engine is not None:
        engine.pairing.doubt()
        engine.arm()


def hook_model(
    root: nn.Module,
    table: StartPlan,
    old: dict[str, weakref.ref[nn.Parameter]],
    order: Sequence[Tensor | str] = (),
) -> None:
    """Put on a prepared model the hooks that open its pools and follow its state: all that needs no optimizer."""
    hooks = [
        root.register_forward_pre_hook(_open),
        root.register_forward_hook(_close, always_call=True),
        root.register_state_dict_pre_hook(_before_save),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_pre_hook(_before_load),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_post_hook(_after_load),  # type: ignore[no-untyped-call]
    ]
    root.__dict__.update({"realloc_hooks": hooks, "realloc_start": table})
    PREPARED.put(root, Prepared(old, order))
    ignored = [*root._buffers, *getattr(root, "_ddp_params_and_buffers_to_ignore", [])]
    root._ddp_params_and_buffers_to_ignore = [n for n in ignored if n.startswith("realloc_") or n not in root._buffers]  # type: ignore[assignment]


def hook_look(handle: Handle) -> None:
    """Look once whether the layer whose columns move, which nobody named, sees the input of the model."""
    holdings, engine = handle._engine.holdings, handle._engine
    (site,) = holdings.sites.values()
    layer = holdings.owner.get_submodule(site.name.rpartition(".")[0])
    look = FirstLook(site.name, next(iter(holdings.parameters)))
    hook = layer.register_forward_pre_hook(look)
    look.done = hook.remove
    engine.tie.hook(hook)


def hook_engine(
    model: nn.Module,
    target: Target,
    method: Method | RankMethod | WidthMethod,
    schedule: Schedule,
    table: StartPlan,
    sink: Sink | None,
) -> Handle:
    """Put an engine's hooks on the optimizer and on the pools of a prepared model; the handle takes them off."""
    holdings, optimizer = target.holdings, target.optimizer
    root = holdings.owner
    prepared = PREPARED.of(root) or Prepared({})  # of a copy of a prepared model
    PREPARED.put(root, prepared)

    def give_back() -> None:
        dense: dict[str, nn.Parameter] = {}
        for parameter, parts in densify(holdings):
            carry_out(optimizer, parts, parameter, target.fresh[parameter])
            replace(optimizer, [("", parameter)], [(part.name, part.parameter) for part in parts])
            dense.update({part.name: part.parameter for part in parts})
        before = [dense[p] if isinstance(p, str) else p for p in prepared.order]
        sort_groups(optimizer, before or list(root.parameters()))
        engine.pairing.wipe()

    ranks = ranks_of(model)
    ranks.check_stamp(holdings.stamp(), "after attach")
    decider = DECIDERS[type(method)](holdings, method, schedule, ranks)
    engine = Engine(target, method, decider, ranks=ranks, sink=sink, old=prepared.old)
    tie = engine.tie

    def before_load(_: Any, state: dict[str, Any]) -> None:
        check_optimizer_state(optimizer, state, target.fresh)
        engine.pairing.doubt()

    tie.hook(
        optimizer.register_step_pre_hook(engine.before_step),
        optimizer.register_step_post_hook(engine.after_step),
        optimizer.register_load_state_dict_pre_hook(before_load),
    )
    for backwards in engine.backwards:
        tie.hook(backwards.pool.parameter.register_post_accumulate_grad_hook(backwards))  # type: ignore[no-untyped-call]
    for site in holdings.masked.sites if holdings.masked is not None else ():
        tie.hook(site.parameter.register_hook(Hook(site.begin)))  # type: ignore[no-untyped-call]
        tie.hook(site.parameter.register_post_accumulate_grad_hook(Hook(site.collect)))  # type: ignore[no-untyped-call]
    tie.until(give_back)
    tie.serve(optimizer)
    prepared.engine = engine
    if not engine.pairing.written:  # else its state was loaded already
        engine.pairing.write()
    return Handle(engine, table)
