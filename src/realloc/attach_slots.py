"""The hooks of units with slots: on the model, on its pools and on the optimizer, and what takes them back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.apply import Target
from realloc.bind import check_optimizer_state
from realloc.choose_columns import method_over
from realloc.decider import Decider
from realloc.engine import Engine
from realloc.errors import ConfigError, RecordError, StateError
from realloc.find_widths import in_turn, outermost
from realloc.first_forward import FirstForward
from realloc.handle import Handle
from realloc.links import Hook, Link
from realloc.methods.column_method import ColumnMethod
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.method import Method
from realloc.methods.rank_method import RankMethod
from realloc.methods.width_method import WidthMethod
from realloc.observe.ranks import ranks_of
from realloc.observe.upstream import FirstLook
from realloc.plan import StartPlan
from realloc.pool.found import all_of, ignore_in_ddp
from realloc.pool.groups import carry_out, replace, sort_groups
from realloc.pool.holdings import SAME, Holdings, books_of, plain_names
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
    """What a prepared model knows of one method, and no copy of it: what it was before, and who moves its units.

    ``order``: the optimizer's parameters before any method was attached to the model; those that went into pools by
    their names. All methods of a model have the same list.
    """

    old: dict[str, weakref.ref[nn.Parameter]]  # the dense weights that went into pools
    order: list[Tensor | str] = field(default_factory=list)
    engine: Engine | None = None


PREPARED: Final = Link[dict[str, Prepared]]("realloc_link")  # by the prefix of the holdings


def engine_of(holdings: Holdings) -> Engine | None:
    """The engine that moves what a method holds on an attached model."""
    prepared = (PREPARED.of(holdings.owner) or {}).get(holdings.prefix)
    return None if prepared is None else prepared.engine


def _open(module: nn.Module, args: Any) -> None:
    if not torch.compiler.is_compiling():
        for holdings in all_of(module):
            holdings.open()


def _close(module: nn.Module, args: Any, output: Any) -> None:
    if not torch.compiler.is_compiling():
        for holdings in all_of(module):
            holdings.close()


def _before_save(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    for holdings in all_of(module):
        holdings.stamp()


def _before_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    everything = all_of(module)
    unknown = books_of(state, prefix) - {holdings.book.key for holdings in everything}
    if unknown:
        raise RecordError(f"{prefix}{min(unknown)} is of a method that this model has not: {SAME}")
    budgets = [holdings.check_state(state, prefix) for holdings in everything]
    for holdings, budget in zip(everything, budgets, strict=True):
        if budget is None:
            continue
        engine = engine_of(holdings)
        if engine is not None and engine.ranks.several:
            raise StateError(
                "the state is that of a compacted model, and DDP cannot see shapes change; load it before DDP"
            )
        holdings.shorten(state, prefix, budget, None if engine is None else engine.target.optimizer)


def _after_load(module: nn.Module, incompatible: Any) -> None:
    for holdings in all_of(module):
        if not any(key.endswith(holdings.book.key) for key in incompatible.missing_keys):
            holdings.loaded()
        engine = engine_of(holdings)
        if engine is not None:
            engine.pairing.doubt()
            engine.arm()


def hook_model(
    root: nn.Module,
    table: StartPlan,
    old: dict[str, weakref.ref[nn.Parameter]],
    order: Sequence[Tensor | str] = (),
) -> None:
    """Put on a model that was prepared just now the hooks that open its pools and follow its state.

    That is all that needs no optimizer. ``order``: as the optimizer is now, `Prepared`.
    """
    holdings, known = all_of(root)[-1], PREPARED.of(root) or {}
    holdings.start = table
    known[holdings.prefix] = Prepared(old, _joined(root, known.values(), old, order))
    PREPARED.put(root, known)
    ignore_in_ddp(root)
    if "realloc_hooks" in root.__dict__:
        return
    root.__dict__["realloc_hooks"] = [
        root.register_forward_pre_hook(_open),
        root.register_forward_hook(_close, always_call=True),
        root.register_state_dict_pre_hook(_before_save),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_pre_hook(_before_load),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_post_hook(_after_load),  # type: ignore[no-untyped-call]
    ]


def _joined(
    root: nn.Module,
    before: Iterable[Prepared],
    old: dict[str, weakref.ref[nn.Parameter]],
    order: Sequence[Tensor | str],
) -> list[Tensor | str]:
    """The list that all methods of a model share, once another one comes.

    What the optimizer was given since, and what another optimizer has, stands behind what is known. Where a method was
    prepared before there was an optimizer, there is no list: its parameters were those of the model.
    """
    first = next(iter(before), None)
    if first is None:
        return list(order)
    shared, gone = first.order, {id(reference()): name for name, reference in old.items()}
    if not shared:
        return shared
    shared[:] = [entry if isinstance(entry, str) else gone.get(id(entry), entry) for entry in shared]
    pools = {id(flat.parameter) for one in all_of(root) for flat in one.flats}
    known = {entry if isinstance(entry, str) else id(entry) for entry in shared}
    for entry in order:
        mark = entry if isinstance(entry, str) else id(entry)
        if mark not in known and mark not in pools:
            shared.append(entry)
    return shared


Slots = Method | RankMethod | DeltaMethod | WidthMethod


def waiting_for(root: nn.Module, method: Slots | ColumnMethod) -> tuple[Holdings | None, Slots]:
    """What was prepared for a method and is not attached yet, if anything; and the method, resolved for the model.

    Raises:
        ConfigError: the model was prepared for another method.
        StateError: nothing waits for it, and it moves units of this model already.
    """
    waiting = [one for one in all_of(root) if engine_of(one) is None]
    alike = [one for one in waiting if _prepared_for(one, method)]
    for one in alike:
        if _over(one, method):
            return one, method_over(root, method, one) if isinstance(method, ColumnMethod) else method
    if alike:
        raise ConfigError(
            f"the model was prepared for {method.name} at {method.asked} over {plain_names(alike[0].sites)}, attach "
            "got it for other layers; pass the same method to both"
        )
    if waiting and waiting[0].start is not None:
        table = waiting[0].start
        raise ConfigError(
            f"the model was prepared for {table.method} at {table.asked}, attach got {method.name} at {method.asked}; "
            "pass the same method to both"
        )
    refuse_twice(root, method, "attached already; detach() the first handle before attaching again")
    return None, method_over(root, method, None) if isinstance(method, ColumnMethod) else method


def _prepared_for(one: Holdings, method: Slots | ColumnMethod) -> bool:
    return one.start is not None and (one.start.method, one.start.asked) == (method.name, method.asked)


def _over(one: Holdings, method: Slots | ColumnMethod) -> bool:
    """Whether the layers that something was prepared for were named as those of a method are."""
    if isinstance(method, ColumnMethod):
        return method.layer is None or f"{method.layer}.weight".removeprefix(".") in one.sites
    return one.start is not None and one.start.where == (method.where.layers, method.where.exclude)


def refuse_twice(root: nn.Module, method: Slots | ColumnMethod, already: str) -> None:
    """Weights and widths of one model may move under several methods; what stands beside frozen weights is alone.

    Raises:
        StateError: one of the two freezes the rest, or the same method comes again without saying for which layers.
    """
    layers = method.layer if isinstance(method, ColumnMethod) else method.where.layers
    for one in all_of(root):
        alone = isinstance(method, RankMethod | DeltaMethod) or any(f.storage in ("rank", "delta") for f in one.flats)
        if alone or (_prepared_for(one, method) and layers is None):
            raise StateError(f"this model is {already}")


def hook_look(handle: Handle) -> None:
    """Look once whether the layer whose columns move, which nobody named, sees the input of the model."""
    holdings, engine = handle._engine.holdings, handle._engine
    (site,) = holdings.sites.values()
    layer = holdings.owner.get_submodule(site.name.rpartition(".")[0])
    look = FirstLook(site.name, next(iter(holdings.parameters)))
    hook = layer.register_forward_pre_hook(look)
    look.done = hook.remove
    engine.tie.hook(hook)


def hook_first(engine: Engine, method: WidthMethod) -> None:
    """Ask the model's own code, at its first forward of training, whether it follows widths that were read off it.

    With an example it was asked before.
    """
    root = engine.holdings.owner
    in_sequentials = {name for outer, module in outermost(root) for name, _ in in_turn(outer, module)}
    groups = in_sequentials.intersection(engine.holdings.wide[0].space.groups)
    if not groups:  # layers of a known transformer, whose code is known: no copy of it is made
        return
    first = FirstForward(method, frozenset(groups))
    hook = root.register_forward_pre_hook(first, with_kwargs=True, prepend=True)  # before pools are opened
    first.done = hook.remove
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
    known = PREPARED.of(root) or {}
    prepared = known.setdefault(holdings.prefix, Prepared({}))  # made here for a copy of a prepared model
    PREPARED.put(root, known)

    def give_back() -> None:
        dense: dict[str, nn.Parameter] = {}
        for parameter, parts in densify(holdings):
            carry_out(optimizer, parts, parameter, target.fresh[parameter])
            replace(optimizer, [("", parameter)], [(part.name, part.parameter) for part in parts])
            dense.update({part.name: part.parameter for part in parts})
        order = prepared.order
        order[:] = [dense.get(p, p) if isinstance(p, str) else p for p in order]
        before = [p for p in order if not isinstance(p, str)]
        sort_groups(optimizer, before or list(root.parameters()))
        engine.pairing.wipe()
        del known[holdings.prefix]
        if not known:
            PREPARED.drop(root)

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
    if isinstance(method, WidthMethod) and method.moves and method.example is None:
        hook_first(engine, method)
    tie.until(give_back)
    tie.serve(optimizer, root=root)
    prepared.engine = engine
    if not engine.pairing.written:  # else its state was loaded already
        engine.pairing.write()
    return Handle(engine, table)
