"""What is refused before layers may train in turn: each check names the thing, the value and the remedy."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from realloc.cache.passage import Passage
from realloc.cache.rows import room_of
from realloc.errors import ConfigError, plain
from realloc.layers import LayerEngine
from realloc.methods.layers import LayerMethod
from realloc.pool.found import wrapper_of
from realloc.pool.rights import held_by
from realloc.schedule import Schedule
from realloc.sites.blocks import Blocks

_NORMS = (nn.modules.batchnorm._BatchNorm,)


def check_schedule(method: LayerMethod, schedule: Schedule | None) -> None:
    """Refuse a method that moves without a word on when.

    Raises:
        ConfigError: there is no schedule.
    """
    if method.moves and schedule is None:
        raise ConfigError(
            f"{method.name} chooses layers again and again; say when: schedule=realloc.every(100, total=steps)"
        )


def check_wrapper(model: nn.Module, method: LayerMethod) -> None:
    """Refuse a wrapper that cannot see layers stop.

    Raises:
        ConfigError: DDP without its word for it, or a compiled model.
    """
    wrapper = wrapper_of(model)
    if wrapper is not None:
        if getattr(wrapper, "static_graph", False):
            raise ConfigError("DDP(static_graph=True) cannot see layers stop; wrap without it")
        if method.moves and not getattr(wrapper, "find_unused_parameters", False):
            raise ConfigError(f"{method.name} stops and starts layers under DDP; wrap with find_unused_parameters=True")
        if not method.moves:
            raise ConfigError(f"DDP reads once which parameters train; attach {method.name} first, then wrap the model")
    if type(model).__name__ == "OptimizedModule":
        raise ConfigError("torch.compile may keep training what was frozen; attach first, without torch.compile")


def passage_of(blocks: Blocks, method: LayerMethod) -> Passage | None:
    """The way through the frozen prefix; None: there is nothing to keep.

    Raises:
        ConfigError: a model whose inputs the cache does not know, or a layer with a forward of its own.
    """
    if blocks.base is None:
        if method.cache is None or method.prefix_dropout == "keep":
            return None
        raise ConfigError(
            f"the cache does not know the inputs of {plain(blocks.name)!r}: it takes models of transformers and "
            "nn.Sequential; train without it: cache=None"
        )
    own = next((m for m in blocks.gates if "forward" in m.__dict__), None)
    if own is not None:
        raise ConfigError(
            f"a layer ({type(own).__name__}) has a forward of its own, as accelerate's device hooks give it; remove "
            "it, or train without the cache: cache=None"
        )
    if method.cache is not None:
        method.cache.check_file()
    return Passage(blocks.base, method.cache, dropout=method.prefix_dropout == "keep")


def check_budget(engine: LayerEngine) -> None:
    """Refuse a budget that pays for no layer.

    Raises:
        ConfigError: the cheapest costs more.
    """
    ledger, method = engine.ledger, engine.method
    least = min(ledger.cost((layer,)) for layer in range(len(engine.blocks)))
    if method.moves and least > ledger.budget:
        raise ConfigError(
            f"budget {method.budget} pays for no layer: the cheapest costs {least / ledger.costs.full:.2f} "
            "of a step in which every layer trains, most of it the forward pass; raise the budget"
        )


def check_optimizer(engine: LayerEngine, chosen: Iterable[int]) -> None:
    """Refuse an optimizer that lacks a layer which is to train, all that trains above the layers, or everything.

    Raises:
        ConfigError: as `check_held`; there are parameters above the layers that are not frozen, and it holds none of
            them; or it holds none of the model.
    """
    check_held(engine, range(len(engine.blocks)) if engine.method.moves else chosen)
    held = held_by(engine.optimizer)
    if not held & {id(p) for p in engine.owner.parameters()}:
        raise ConfigError("the optimizer holds no parameter of this model; make it from model.parameters()")
    above = [p for p in engine.blocks.above if p.requires_grad]
    if above and not any(id(p) in held for p in above):  # a part may be left out: a pooler that nobody reads
        raise ConfigError(
            f"the optimizer does not hold {_named(engine, above[0])}, nor anything else above the layers, which "
            "always trains; make the optimizer from all parameters of the model, or freeze what is above by "
            "requires_grad_(False): where another optimizer trains it, until attach() is over"
        )


def check_held(engine: LayerEngine, layers: Iterable[int]) -> None:
    """Refuse layers that cannot train.

    Raises:
        ConfigError: one is frozen, or the optimizer does not hold it.
    """
    held, name = held_by(engine.optimizer), engine.method.name
    for layer in layers:
        parameters = engine.layers[layer]
        if not parameters:
            raise ConfigError(
                f"{engine.blocks.names[layer]!r} is frozen (no parameter requires a gradient), yet {name} trains it; "
                "let it require gradients before attach()"
            )
        missing = next((p for p in parameters if id(p) not in held), None)
        if missing is not None:
            raise ConfigError(
                f"the optimizer does not hold {_named(engine, missing)}, yet {name} trains it; make the "
                "optimizer from all parameters of the model, before anything is frozen"
            )


def _named(engine: LayerEngine, parameter: nn.Parameter) -> str:
    return repr(plain(next(name for name, p in engine.owner.named_parameters() if p is parameter)))


def check_below(blocks: Blocks, method: LayerMethod, chosen: tuple[int, ...]) -> None:
    """Refuse a cache over what is not the same for an example each time.

    Raises:
        ConfigError: a batch norm that updates or mixes examples lies below the frozen end; layers skip at random.
    """
    lowest = 0 if method.embeddings == "always" else min(chosen, default=len(blocks))
    if method.rises:  # until the highest layer is left
        lowest = len(blocks) - 1
    if method.cache is None or not lowest or blocks.base is None:
        return
    names = {id(m): name for name, m in blocks.base.named_modules()}
    for module in blocks.base.modules():
        if isinstance(dropped := getattr(module, "layerdrop", 0), int | float) and dropped > 0:
            raise ConfigError(
                f"{type(module).__name__} skips whole layers at random (layerdrop={dropped}), frozen ones too; set its "
                "layerdrop to 0.0, or train without the cache: cache=None"
            )
    for module in blocks.lower(lowest) if lowest else ():
        if isinstance(module, _NORMS) and (module.training or not module.track_running_stats):
            raise ConfigError(
                f"{plain(names[id(module)])!r} below the frozen end is a {type(module).__name__} that updates or mixes "
                "examples; call .eval() on it before attach(), or train without the cache: cache=None"
            )


def check_room(blocks: Blocks, method: LayerMethod, chosen: tuple[int, ...]) -> None:
    """Refuse a cache that no token fits in, as far as the model tells its width before it runs.

    Raises:
        ConfigError: one token takes more than the limit.
    """
    if method.cache is None or blocks.base is None or method.embeddings == "always":
        return
    hidden = getattr(getattr(blocks.base, "config", None), "hidden_size", None)
    lowest = min(chosen, default=len(blocks))
    for last in blocks.modules if method.rises else blocks.modules[max(0, lowest - 1) : lowest]:
        width = hidden or getattr(last, "out_features", None)
        if isinstance(width, int):
            room_of(width, method.cache.bytes, method.cache.dtype)
