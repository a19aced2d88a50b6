"""Attaching a method that chooses layers: the order of its acts, and the hooks and gates that go on the model."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from realloc.allocate.layer_costs import CostTable
from realloc.cache.gate import Gate
from realloc.errors import StateError
from realloc.layer_checks import (
    check_below,
    check_budget,
    check_optimizer,
    check_room,
    check_schedule,
    check_wrapper,
    passage_of,
)
from realloc.layer_handle import LayerHandle
from realloc.layers import LayerEngine
from realloc.links import Link, refuse_taken
from realloc.methods.layers import LayerMethod
from realloc.observe.ranks import Ranks, ranks_of
from realloc.observe.sight import Sight
from realloc.plan import LayerPlan
from realloc.pool.found import find, root_of
from realloc.pool.rights import KEY, Rights, held_by
from realloc.record.sink import Sink
from realloc.schedule import Schedule
from realloc.sites.blocks import blocks_of

ENGINE: Final = Link[LayerEngine]("realloc_layer_link")


def attach_layers(
    model: nn.Module,
    root: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: LayerMethod,
    schedule: Schedule | None,
    seed: int,
    sink: Sink | None,
) -> LayerHandle:
    """Let layers train in turn; called by `attach`, which has checked the types.

    Raises:
        ConfigError: the model, the optimizer or the wrapper does not allow it. Nothing was changed then.
        StateError: attached already.
    """
    if ENGINE.of(root) is not None:
        raise StateError("this model is attached already; detach() the first handle before attaching again")
    if find(model) is not None:
        raise StateError("this model's weights move already; detach() that handle before attaching its layers")
    refuse_taken(optimizer)
    blocks = blocks_of(root)
    check_schedule(method, schedule)
    check_wrapper(model, method)
    passage = passage_of(blocks, method)
    ranks = ranks_of(model)
    rights = Rights(root, len(blocks), seed, _agreed(method.costs, ranks))
    engine = LayerEngine(blocks, rights, optimizer, method, schedule, passage, sink, ranks)
    trained = [(p, p.requires_grad) for p in root.parameters()]
    resumed = rights.book.read("number") > 0
    try:
        check_budget(engine)
        chosen = rights.on if resumed else tuple(engine.choose(0).changes[0].acquired.tolist())
        check_optimizer(engine, chosen)
        check_below(blocks, method, chosen)
        check_room(blocks, method, chosen)
        ranks.check_stamp(rights.stamp, "at attach()")
    except BaseException:
        engine.unregister()
        raise
    _hook(root, engine, trained)
    if passage is not None:
        passage.resumed = resumed
    engine.enact(loaded=True) if resumed else engine.make(chosen)
    engine.arm()
    return LayerHandle(engine, plan_of(engine))


def register_layers(model: nn.Module, method: LayerMethod, seed: int) -> None:
    """Put the buffers of a method on a model before an optimizer exists, so that a checkpoint can be loaded first.

    Raises:
        ConfigError: the model has no layers.
        StateError: it has such buffers already.
    """
    root = root_of(model)
    if KEY in root._buffers:
        raise StateError("this model is attached already; detach() the first handle before attaching again")
    blocks = blocks_of(root)
    Rights(root, len(blocks), seed, method.costs)
    Sight(root, blocks, method.needs, Ranks())


def plan_of(engine: LayerEngine) -> LayerPlan:
    """What trains now, what it costs, and what the user should know of it."""
    on, ledger = engine.rights.on, engine.ledger
    lowest = min(on, default=len(engine.blocks))
    notes = []
    if engine.passage is not None and engine.passage.end:
        still = engine.method.prefix_dropout == "off"
        notes.append(f"the {lowest} lowest layers and what lies below them are frozen; their dropout "
                     f"{'is off' if still else 'stays on, so nothing is cached'}")  # fmt: skip
    elif engine.passage is not None and engine.method.rises:
        notes.append("what freezes later from the input on has its dropout off from then on"
                     if engine.method.prefix_dropout == "off" else
                     "what freezes later keeps its dropout, so nothing will be cached")  # fmt: skip
    if ledger.caches and lowest:
        cache = engine.method.cache
        assert cache is not None
        notes.append(f"their output is computed once for each example and read afterwards: {cache.dtype}, at most "
                     f"{cache.bytes:,} bytes{'' if cache.file is None else ', in a file'}")  # fmt: skip
        if cache.epoch is None:
            notes.append("how many examples an epoch has is not known: where texts are changed each time, that is "
                         "noticed when the cache is full; give Cache(epoch=...)")  # fmt: skip
    if not engine.blocks.above:
        notes.append("there is no head of its own above the layers (its weights are tied to the embeddings)")
    held = held_by(engine.optimizer)
    trainable = [p for p in engine.owner.parameters() if p.requires_grad and id(p) in held]
    return LayerPlan(
        method=engine.method.name,
        layers=tuple((name, layer in on) for layer, name in enumerate(engine.blocks.names)),
        cost=ledger.cost(on), budget=ledger.budget, full=ledger.costs.full, unit=ledger.costs.unit,
        trainable=sum(p.numel() for p in trainable), parameters=sum(p.numel() for p in engine.owner.parameters()),
        notes=tuple(notes),
    )  # fmt: skip


def _agreed(costs: CostTable | None, ranks: Ranks) -> CostTable | None:
    """Rank 0's table on every rank: each has its own clock."""
    if costs is None or not ranks.several:
        return costs
    numbers = ranks.of_first([*costs.forward, *costs.inputs, *costs.weights])
    first, second = len(costs), 2 * len(costs)
    return CostTable(tuple(numbers[:first]), tuple(numbers[first:second]), tuple(numbers[second:]))


# hooks and gates ------------------------------------------------------------------------------------------------


def _hook(root: nn.Module, engine: LayerEngine, trained: list[tuple[nn.Parameter, bool]]) -> None:
    optimizer, passage, tie = engine.optimizer, engine.passage, engine.tie
    linked: list[nn.Module] = [root]
    tie.hook(
        optimizer.register_step_pre_hook(engine.before_step),
        optimizer.register_step_post_hook(engine.after_step),
        root.register_state_dict_pre_hook(_before_save),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_pre_hook(_before_load),  # type: ignore[no-untyped-call]
        root.register_load_state_dict_post_hook(_after_load),  # type: ignore[no-untyped-call]
    )
    gates: tuple[nn.Module, ...] = ()
    if passage is not None:
        base, gates = passage.base, engine.blocks.gates
        linked.append(base)
        tie.hook(
            base.register_forward_pre_hook(_enter, with_kwargs=True),
            base.register_forward_hook(_leave, always_call=True),
        )
        for number, block in enumerate(gates):
            block.__dict__["forward"] = Gate(block, number, passage.halves)
    if engine.sight.plasticity is not None:
        for block in engine.blocks.modules:
            linked.append(block)
            tie.hook(block.register_forward_pre_hook(_enter_layer, with_kwargs=True))
    for module in linked:
        ENGINE.put(module, engine)

    def give_back() -> None:
        for block in gates:
            block.__dict__.pop("forward", None)
        for module in linked:
            ENGINE.drop(module)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        if passage is not None:
            passage.release()
        engine.unregister()

    tie.until(give_back)
    tie.serve(optimizer)


def _enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    engine = ENGINE.of(module)
    return None if engine is None or engine.passage is None else engine.passage.enter(args, kwargs)


def _enter_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    engine = ENGINE.of(module)
    if engine is not None and engine.sight.near and module.training and torch.is_grad_enabled():
        lowest = min(engine.rights.on, default=None)
        if lowest is not None and module is engine.blocks.modules[lowest]:
            engine.sight.enter(args, kwargs)


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    engine = ENGINE.of(module)
    if engine is not None and engine.passage is not None:
        engine.passage.leave()


def _before_save(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    engine = ENGINE.of(module)
    if engine is not None:
        engine.seal()


def _before_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    engine = ENGINE.of(module)
    if engine is not None:
        engine.rights.check(state, prefix)
        for name, buffer in engine.buffers().items():  # a plain model's state says nothing of them: they stay
            state.setdefault(prefix + name, buffer)


def _after_load(module: nn.Module, incompatible: Any) -> None:
    engine = ENGINE.of(module)
    if engine is not None:
        engine.enact(loaded=True)
        engine.arm()
