"""Nested Python values as plain JSON beside named tensors, and back, exactly. No pickle: only the types listed here.

A value that JSON cannot hold becomes ``{"$": tag, ...}``. Types: None, bool, int, float (also NaN and infinities), str,
bytes, list, tuple, dict (any keys of these types), Counter, torch tensors, dtypes, devices and sizes, numpy arrays and
scalars of number types.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from realloc.errors import RecordError, plain

_DEPTH = 48
_PLAIN = (type(None), bool, int, str)
_DICTS = (dict, collections.OrderedDict, collections.defaultdict)


def encode(value: object, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return ``value`` as JSON; its tensors are put into ``tensors`` under names that begin with ``name``.

    Raises:
        RecordError: a type not listed above, or more than 48 levels, by name.

    >>> tensors = {}
    >>> encode({"betas": (0.9, 0.99), "lr": torch.ones(())}, "group", tensors)
    {'betas': {'$': 'tuple', 'items': [0.9, 0.99]}, 'lr': {'$': 'tensor', 'name': 'group/lr'}}
    >>> decode(_, tensors)
    {'betas': (0.9, 0.99), 'lr': tensor(1.)}
    """
    return _encode(value, name, tensors, _DEPTH)


def decode(node: object, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `encode`. Tensors are fresh copies, with the strides they had.

    Raises:
        RecordError: anything that `encode` does not write.
    """
    try:
        return _decode(node, tensors, _DEPTH)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(
            f"the state of the checkpoint is not as realloc writes it ({plain(repr(error))[:200]}); "
            "delete this checkpoint"
        ) from None


def _encode(value: object, name: str, tensors: dict[str, Tensor], depth: int) -> Any:
    if depth == 0:
        raise RecordError(f"{plain(name)!r} is more than {_DEPTH} levels deep, or holds itself; it cannot be saved")
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return _encode_tensor(value, name, tensors)
    if isinstance(value, np.ndarray | np.generic):  # before float: numpy's float64 is one
        return _encode_array(value, name, tensors)
    if isinstance(value, dict | list | tuple):
        return _encode_many(value, name, tensors, depth - 1)
    return _encode_one(value, name)


def _encode_many(
    value: dict[Any, object] | list[object] | tuple[object, ...], name: str, tensors: dict[str, Tensor], depth: int
) -> Any:
    if isinstance(value, dict):
        if type(value) in _DICTS and all(type(key) is str for key in value) and "$" not in value:
            return {k: _encode(v, f"{name}/{k}", tensors, depth) for k, v in value.items()}
        pairs = [
            [_encode(k, f"{name}/key", tensors, depth), _encode(v, f"{name}/{k}", tensors, depth)]
            for k, v in value.items()
        ]
        if type(value) in (*_DICTS, collections.Counter):
            return {"$": "counter" if isinstance(value, collections.Counter) else "dict", "items": pairs}
    if type(value) in (list, tuple, torch.Size):
        items = [_encode(v, f"{name}/{i}", tensors, depth) for i, v in enumerate(value)]
        return items if type(value) is list else {"$": type(value).__name__.lower(), "items": items}
    raise _unknown(value, name)


def _encode_one(value: object, name: str) -> Any:
    if type(value) is float:
        return value if math.isfinite(value) else {"$": "float", "value": str(value)}
    if isinstance(value, bytes):
        return {"$": "bytes", "hex": value.hex()}
    if isinstance(value, torch.dtype | torch.device):
        return {"$": type(value).__name__, "name": str(value).removeprefix("torch.")}
    raise _unknown(value, name)


def _unknown(value: object, name: str) -> RecordError:
    kind = type(value)
    return RecordError(
        f"{plain(name)!r} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved without pickle; store "
        "numbers, strings, tensors, lists, tuples and dicts of them"
    )


def _encode_tensor(value: Tensor, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    unique, count = name, 1
    while unique in tensors:  # {"a/b": .., "a": {"b": ..}} would meet in one name
        count += 1
        unique = f"{name}#{count}"
    tensors[unique] = value.detach()
    node: dict[str, Any] = {"$": "tensor", "name": unique}
    # A fused optimizer walks parameter and state side by side in memory: channels_last must stay channels_last.
    if value.layout == torch.strided and not value.is_contiguous() and _dense(value.shape, value.stride()):
        node["stride"] = list(value.stride())
    return node


def _encode_array(value: np.ndarray[Any, Any] | np.generic, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    array = np.array(value, order="C")  # a copy, writable: torch warns about others
    try:
        tensor = torch.from_numpy(array)
    except TypeError:
        raise RecordError(f"{plain(name)!r} is a numpy value of {array.dtype}; store numbers or booleans") from None
    return {"$": "array" if isinstance(value, np.ndarray) else "scalar", "of": _encode_tensor(tensor, name, tensors)}


def _decode(node: object, tensors: Mapping[str, Tensor], depth: int) -> Any:
    if depth == 0:
        raise RecordError(f"the state of the checkpoint is more than {_DEPTH} levels deep; delete this checkpoint")
    if isinstance(node, list):
        return [_decode(v, tensors, depth - 1) for v in node]
    if not isinstance(node, dict):
        return node
    if "$" not in node:
        return {k: _decode(v, tensors, depth - 1) for k, v in node.items()}
    if "items" in node:
        return _MANY[node["$"]]([_decode(v, tensors, depth - 1) for v in node["items"]])
    return _ATOMS[node["$"]](node, tensors)


def _decode_tensor(node: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    saved = tensors[node["name"]]
    stride = node.get("stride")
    if stride is None:
        return saved.clone(memory_format=torch.contiguous_format)
    if not all(type(s) is int for s in stride) or not _dense(saved.shape, tuple(stride)):
        raise ValueError("strides that do not fit the tensor")
    return torch.empty_strided(saved.shape, stride, dtype=saved.dtype).copy_(saved)


def _dense(shape: torch.Size, stride: tuple[int, ...]) -> bool:
    """Say whether the strides are a permutation of contiguous ones: no gaps, no overlap, no room beyond the values."""
    if len(shape) != len(stride) or 0 in shape:
        return False
    expected = 1
    for step, size in sorted((t, s) for s, t in zip(shape, stride, strict=True) if s > 1):
        if step != expected:
            return False
        expected *= size
    return all(0 <= step <= expected for step in stride)


def _decode_dtype(node: Mapping[str, Any], _: Mapping[str, Tensor]) -> torch.dtype:
    found = getattr(torch, node["name"])
    if not isinstance(found, torch.dtype):
        raise TypeError("no dtype")
    return found


_MANY: dict[str, Callable[[list[Any]], object]] = {
    "tuple": tuple,
    "size": torch.Size,
    "dict": dict,
    "counter": lambda pairs: collections.Counter(dict(pairs)),
}
_ATOMS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], object]] = {
    "float": lambda node, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[node["value"]],
    "bytes": lambda node, _: bytes.fromhex(node["hex"]),
    "dtype": _decode_dtype,
    "device": lambda node, _: torch.device(node["name"]),
    "tensor": _decode_tensor,
    "array": lambda node, tensors: _decode_tensor(node["of"], tensors).numpy(),
    "scalar": lambda node, tensors: _decode_tensor(node["of"], tensors).numpy()[()],
}
