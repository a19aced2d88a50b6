"""The whole state of a training as (tensors, JSON), and back: checked in full before anything is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import realloc.record.streams as streams
import realloc.record.tree as tree
from realloc.errors import RecordError, nearest, plain
from realloc.record.moments import check_optimizer, describe_optimizer, restore_optimizer

VERSION = 1
_REMEDY = "build the model, optimizer and parts as the run's config.json says, then resume"


class Stateful(Protocol):
    """A scheduler, a GradScaler, an averaged model: anything with its own state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take the state back."""
        ...


@final
@dataclass(frozen=True)
class Packed:
    """What `pack` returns. The tensors are the live ones: save them before the next optimizer step."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def pack(
    model: nn.Module,
    optimizer: Optimizer,
    extra: Mapping[str, object],
    *,
    parts: Mapping[str, Stateful] | None = None,
    generators: Mapping[str, torch.Generator | np.random.Generator] | None = None,
) -> Packed:
    """Pack everything a bit-equal resume needs, between two optimizer steps.

    Args:
        model, optimizer: their `state_dict()`; tied tensors are stored once.
        extra: anything of the types in `tree.py`: step, data order (seed, epoch, position), offset of the event log.
        parts: schedulers, GradScaler, averaged models, by name.
        generators: own streams by name. The global ones (torch, CUDA, numpy, Python) are always stored.

    Raises:
        RecordError: a value that cannot be stored without pickle, by name.

    Example:
        >>> model = nn.Linear(2, 1); optimizer = torch.optim.AdamW(model.parameters())
        >>> packed = pack(model, optimizer, {"step": 7})
        >>> unpack(packed.tensors, packed.state, model, optimizer)
        {'step': 7}
    """
    tensors: dict[str, Tensor] = {}
    state = {
        "v": VERSION,
        "model": _pack_module(model, "model", tensors),
        "optimizer": describe_optimizer(optimizer, model)
        | {"state": tree.encode(optimizer.state_dict(), "optimizer", tensors)},
        "parts": {name: _pack_part(part, f"parts/{name}", tensors) for name, part in (parts or {}).items()},
        "random": tree.encode(streams.capture(generators or {}), "random", tensors),
        "extra": tree.encode(dict(extra), "extra", tensors),
        "made_with": streams.surroundings(),
    }
    return Packed(tensors, state)


def unpack(
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    *,
    parts: Mapping[str, Stateful] | None = None,
    generators: Mapping[str, torch.Generator | np.random.Generator] | None = None,
) -> dict[str, Any]:
    """Put a packed state back and return ``extra``. All or nothing: every name, shape and dtype is checked first.

    Make schedulers before this call; the learning rates end as they were saved. Warns (RA301) when torch, numba or the
    thread count differ from those at saving, since bit-equality holds on the same ones only.

    Raises:
        RecordError: anything missing, left over, or of another shape, dtype, class or order; nothing was changed.
    """
    parts, generators = parts or {}, generators or {}
    try:
        if state["v"] != VERSION:
            raise RecordError(f"the state has version {state['v']!r}, this realloc reads {VERSION}; update realloc")
        module_values = _open_module(state["model"], model, "model", tensors)
        optimizer_state = tree.decode(state["optimizer"]["state"], tensors)
        check_optimizer(state["optimizer"], optimizer_state, optimizer, model)
        _same_names("part", state["parts"], parts)
        part_states = {name: _open_part(state["parts"][name], part, name, tensors) for name, part in parts.items()}
        saved_streams = tree.decode(state["random"], tensors)
        streams.check(saved_streams, generators)
        extra = tree.decode(state["extra"], tensors)
        if not isinstance(extra, dict):
            raise TypeError("extra is no dict")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(
            f"the state of the checkpoint is not as realloc writes it ({plain(repr(error))[:200]}); "
            "delete this checkpoint"
        ) from None
    streams.warn_if_moved(state.get("made_with"))
    model.load_state_dict(module_values)
    for name, part in parts.items():
        part.load_state_dict(part_states[name])
    # After the schedulers, whose loading may write learning rates.
    restore_optimizer(optimizer_state, optimizer)
    streams.restore(saved_streams, generators)
    return extra


def _pack_module(module: nn.Module, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Store a module's state; names that share one piece of memory (tied weights) share one stored tensor."""
    seen: dict[tuple[object, ...], str] = {}
    places: dict[str, Any] = {}
    for key, value in module.state_dict().items():
        if isinstance(value, Tensor):
            place = _memory(value)
            if place is None or place not in seen:
                stored = f"{name}/{key}"
                tensors[stored] = value.detach()
                places[key] = {"tensor": stored}
                if place is not None:
                    seen[place] = stored
            else:
                places[key] = {"tensor": seen[place]}
        else:  # what a module's get_extra_state returned
            places[key] = {"value": tree.encode(value, f"{name}/{key}", tensors)}
    return places


def _open_module(
    places: Mapping[str, Any], module: nn.Module, name: str, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    live = module.state_dict()
    _same_names(f"entry of the {name}", places, live)
    values: dict[str, Any] = {}
    shared: dict[tuple[object, ...], str] = {}
    for key, now in live.items():
        place = places[key]
        if not isinstance(now, Tensor):
            values[key] = tree.decode(place["value"], tensors)
            continue
        saved = values[key] = tensors[place["tensor"]]
        if saved.shape != now.shape or saved.dtype != now.dtype:
            raise RecordError(
                f"{plain(key)!r} of the {name} is {tuple(saved.shape)} {saved.dtype} in the checkpoint and "
                f"{tuple(now.shape)} {now.dtype} here; {_REMEDY}"
            )
        memory = _memory(now)
        twin = shared.setdefault(memory, key) if memory is not None else key
        if twin != key and places[twin] != place and not _same_bits(values[twin], saved):
            raise RecordError(
                f"{plain(key)!r} and {plain(twin)!r} of the {name} are tied here but differ in the checkpoint; "
                f"{_REMEDY}"
            )
    return values


def _pack_part(part: Stateful, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(part, nn.Module):
        return {"class": type(part).__qualname__, "module": _pack_module(part, name, tensors)}
    return {"class": type(part).__qualname__, "state": tree.encode(part.state_dict(), name, tensors)}


def _open_part(saved: Mapping[str, Any], part: Stateful, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if saved["class"] != type(part).__qualname__:
        raise RecordError(
            f"part {plain(name)!r} was a {plain(str(saved['class']))} and is a {type(part).__qualname__}; {_REMEDY}"
        )
    if isinstance(part, nn.Module):
        return _open_module(saved["module"], part, f"part {plain(name)}", tensors)
    state = tree.decode(saved["state"], tensors)
    if not isinstance(state, dict):
        raise TypeError("the state of a part is no dict")
    for key, now in part.state_dict().items():
        then = state.get(key)
        if isinstance(now, Tensor) and not (
            isinstance(then, Tensor) and then.shape == now.shape and then.dtype == now.dtype
        ):
            raise RecordError(f"{plain(key)!r} of part {plain(name)!r} has another shape or dtype here; {_REMEDY}")
    return state


def _same_names(what: str, saved: Mapping[str, object], live: Mapping[str, object]) -> None:
    for name in saved:
        if name not in live:
            raise RecordError(
                f"the checkpoint holds {what} {plain(name)!r}, unknown here{nearest(name, live)}; {_REMEDY}"
            )
    for name in live:
        if name not in saved:
            raise RecordError(f"the checkpoint lacks {what} {plain(name)!r}{nearest(name, saved)}; {_REMEDY}")


def _memory(value: Tensor) -> tuple[object, ...] | None:
    """Where a tensor's values lie; equal for tied tensors. None where that cannot be told."""
    if value.layout != torch.strided or value.is_meta or value.numel() == 0:
        return None
    return value.data_ptr(), value.device, value.dtype, value.shape, value.stride()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(a, b)
