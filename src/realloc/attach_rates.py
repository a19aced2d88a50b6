"""Attaching a method that shares learning rate: what is refused, and the hooks that go on model and optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from realloc.errors import ConfigError, StateError, plain
from realloc.links import Link, refuse_taken
from realloc.methods.rate_method import RateMethod
from realloc.observe.ranks import ranks_of
from realloc.pool.found import everywhere, root_of
from realloc.pool.probe import scales
from realloc.pool.shares import KEY, MEASURED, SUMS, Shares, Terms
from realloc.rate_handle import RateHandle
from realloc.rates import RateEngine
from realloc.record.sink import Sink
from realloc.schedule import Schedule
from realloc.sites.rate_units import rate_units

ENGINE: Final = Link[RateEngine]("realloc_rate_link")
WAITING: Final = Link["Waiting"]("realloc_rate_waiting")


@final
@dataclass(eq=False)
class Waiting:
    """A model whose rates will be shared once it has an optimizer, and what a checkpoint said of them till then."""

    hook: RemovableHandle
    found: dict[str, Tensor] = field(default_factory=dict)


def await_rates(model: nn.Module) -> None:
    """Before an optimizer exists: keep what a checkpoint says of shares until `attach` comes.

    Raises:
        StateError: attached already.
    """
    root = root_of(model)
    _refuse_attached(root)
    if WAITING.of(root) is None:
        WAITING.put(root, Waiting(root.register_load_state_dict_pre_hook(_await)))  # type: ignore[no-untyped-call]


def awaited(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint must say of shares, by name, where a model waits for it."""
    return {} if WAITING.of(root_of(model)) is None else dict.fromkeys((KEY, SUMS), torch.empty(0))


def _await(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    waiting = WAITING.of(module)
    if waiting is None:  # a copy of the model waits for nothing
        return
    for name in [name for name in (KEY, SUMS) if prefix + name in state]:  # a part of a state leaves the rest
        waiting.found[name] = state[prefix + name].clone()
        if name not in module._buffers:  # a copy of an attached model has them
            del state[prefix + name]


def attach_rates(
    model: nn.Module,
    root: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: RateMethod,
    schedule: Schedule | None,
    seed: int,
    sink: Sink | None,
) -> RateHandle:
    """Let groups share learning rate; called by `attach`, which has checked the types.

    Raises:
        ConfigError: the model, the optimizer or the schedule does not allow it. Nothing was changed then.
        RecordError: a checkpoint that was loaded meanwhile is not of this method and these groups.
        StateError: attached already.
    """
    _refuse_attached(root)
    refuse_taken(optimizer)
    _refuse_pools(root)
    check_optimizer(optimizer)
    if method.moves and schedule is None:
        raise ConfigError(
            f"{method.name} shares rates again and again; say when: schedule=realloc.every(100, total=steps)"
        )
    units, ranks, hold = rate_units(root, optimizer, method.by), ranks_of(model), method.hold
    shares = Shares(root, Terms(method.name, hold, method.most, units.names), seed)
    engine = RateEngine(units, shares, optimizer, method, schedule, sink, ranks)
    try:
        if not shares.goes_on:
            shares.book.write("spent", hold.spent(shares.held, [1.0] * len(units)))
            if not method.moves:
                start = engine.past(torch.zeros(len(MEASURED), len(units)), 0)
                reason = engine.decide(start)
                if reason is not None:
                    raise ConfigError(reason)
        waiting = WAITING.of(root)
        if waiting is not None and waiting.found:
            shares.load(waiting.found)
        ranks.check_stamp(shares.stamp, "at attach()")
    except BaseException:
        engine.unregister()
        raise
    if waiting is not None:
        waiting.hook.remove()
        WAITING.drop(root)
    _hook(root, engine)
    return RateHandle(engine)


def _refuse_attached(root: nn.Module) -> None:
    if ENGINE.of(root) is not None:
        raise StateError("this model's rates are shared already; detach() that handle before attaching again")


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose rate cannot differ between groups.

    Raises:
        ConfigError: it takes one group only (LBFGS), has no rate, or does not follow it.
    """
    kind = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(f"{kind} takes one group of parameters only; rates cannot be shared under it")
    for group in optimizer.param_groups:
        if not isinstance(group.get("lr"), float | int | Tensor):
            raise ConfigError(f"{kind} has no learning rate (lr={group.get('lr')!r}); give it one to share")
    if not scales(optimizer):
        raise ConfigError(
            f"{kind} does not move twice as far at twice the rate (Rprop reads it once, Adafactor caps it): shares "
            "would not do what they say; take another optimizer, such as AdamW or SGD"
        )


def _refuse_pools(root: nn.Module) -> None:
    shared = next((pool for _, one in everywhere(root) for pool in one.pools if len(pool.sites) > 1), None)
    if shared is not None:
        first, second = (plain(site.name) for site in shared.sites[:2])
        raise ConfigError(
            f"{first!r} and {second!r} share one pool, so that the optimizer has one rate for both; share rates on a "
            "model whose weights are not in pools, or detach() that handle first"
        )


def _hook(root: nn.Module, engine: RateEngine) -> None:
    optimizer, tie = engine.optimizer, engine.tie
    ENGINE.put(root, engine)
    tie.hook(
        optimizer.register_step_pre_hook(engine.before_step),
        optimizer.register_step_post_hook(engine.after_step),
        optimizer.register_state_dict_pre_hook(lambda _: engine.mend()),
        optimizer.register_load_state_dict_pre_hook(lambda *_: engine.mend()),
        root.register_load_state_dict_pre_hook(_before_load),  # type: ignore[no-untyped-call]
    )
    tie.until(lambda: ENGINE.drop(root))
    tie.serve(optimizer)
    tie.until(engine.unregister)


def _before_load(module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    engine = ENGINE.of(module)
    if engine is not None:
        engine.shares.check(state, prefix)
        engine.silent = None
        for name in (KEY, SUMS):  # a plain model's state says nothing of them: they stay
            state.setdefault(prefix + name, module.get_buffer(name))
