"""What stands on a model, found on the model itself, so that copies bring their own: one `Holdings` a method."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final

from torch import nn

from realloc.errors import ConfigError, StateError, plain
from realloc.pool.holdings import Holdings
from realloc.pool.names import FIRST, prefix

ATTRIBUTE: Final = "realloc_holdings"
OTHERS: Final = ("realloc_layer", "realloc_rate")  # of methods without pools
DDP: Final = frozenset({"DistributedDataParallel"})
SHARED: Final = DDP | {"FullyShardedDataParallel"}  # they have read the parameters, and average their gradients
WRAPPERS: Final = SHARED | {"DataParallel", "AveragedModel"}
IGNORED: Final = "_ddp_params_and_buffers_to_ignore"  # DDP's: what decides is equal on all ranks already


def all_of(model: nn.Module) -> tuple[Holdings, ...]:
    """All holdings of a model, also under DDP, torch.compile or an averaged copy, the oldest first."""
    known: dict[str, Holdings] = root_of(model).__dict__.get(ATTRIBUTE, {})
    return tuple(known.values())


def everywhere(model: nn.Module) -> Iterator[tuple[str, Holdings]]:
    """All holdings of a model and of parts that were attached by themselves, each with the name of its part."""
    for part, module in root_of(model).named_modules():
        for one in module.__dict__.get(ATTRIBUTE, {}).values():
            yield part, one


def find(model: nn.Module) -> Holdings | None:
    """The first holdings of a model or of a part of it; None where there are none."""
    return next((one for _, one in everywhere(model)), None)


def free_prefix(root: nn.Module) -> str:
    """The first prefix that no method on a model has."""
    known = {one.prefix for one in all_of(root)}
    return next(name for name in map(prefix, count()) if name not in known)


def put_on(holdings: Holdings) -> None:
    """Let them be found on their owner."""
    holdings.owner.__dict__.setdefault(ATTRIBUTE, {})[holdings.prefix] = holdings


def take_off(holdings: Holdings) -> bool:
    """Take them off their owner again; says whether they were the last."""
    known = holdings.owner.__dict__[ATTRIBUTE]
    del known[holdings.prefix]
    if not known:
        del holdings.owner.__dict__[ATTRIBUTE]
    return not known


def ignore_in_ddp(root: nn.Module) -> None:
    """Let DDP neither broadcast nor compare our buffers; names that others have put there stay.

    Running statistics of norms are the model's own, in a pool or not: DDP gives every rank those of the first.
    """
    theirs = [name for name in root.__dict__.pop(IGNORED, []) if not name.startswith(FIRST)]
    names = [*theirs, *(name for name in root._buffers if name.startswith(FIRST) and "running_" not in name)]
    if names:
        root.__dict__[IGNORED] = names


def refuse_own_names(root: nn.Module) -> None:
    """What a method keeps on a model would replace what the model itself has under such a name.

    Raises:
        ConfigError: a parameter or a buffer of the model is called so.
    """
    if ATTRIBUTE in root.__dict__:
        return  # asked before; what is there is ours
    own = (*root._parameters, *root._buffers)
    name = next((name for name in own if name.startswith(FIRST) and not name.startswith(OTHERS)), None)
    if name is not None:
        raise ConfigError(
            f"{type(root).__name__} has {plain(name)!r} of its own, and names with realloc_ are for what methods keep "
            "on a model; rename it"
        )


def movers(root: nn.Module) -> dict[str, str]:
    """The names of all sites of a model, each with the method that moves its units; also where a part was attached."""
    return {
        f"{part}.{name}" if part else name: "another method" if one.start is None else one.start.method
        for part, one in everywhere(root)
        for name in one.sites
    }


def root_of(model: nn.Module) -> nn.Module:
    """The user's own model below wrappers."""
    return [*layers_of(model)][-1]


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """A model, what it wraps, and so on to the user's own."""
    yield model
    while ATTRIBUTE not in model.__dict__:
        wrapped = model._modules.get("_orig_mod") or (model._modules.get("module") if _is_a(model, WRAPPERS) else None)
        if wrapped is None:
            return
        model = wrapped
        yield model


def wrapper_of(model: nn.Module, kinds: frozenset[str] = DDP) -> nn.Module | None:
    """The wrapper of some kind around the user's model, if there is one: also a subclass, or below torch.compile."""
    return next((one for one in layers_of(model) if _is_a(one, kinds)), None)


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse to replace parameters below a wrapper that has read them: it would not average the new ones.

    Raises:
        StateError: there is one.
    """
    wrapper = wrapper_of(model, SHARED)
    if wrapper is not None:
        raise StateError(
            f"prepare() the model before {type(wrapper).__name__} wraps it, which has read its parameters; attach() "
            "what it wraps after that"
        )


def _is_a(model: nn.Module, names: frozenset[str]) -> bool:
    return any(kind.__name__ in names for kind in type(model).__mro__)
