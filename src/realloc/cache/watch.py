"""Notices when a weight that should not change has changed, or another module, weight or hook stands in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any, final

import torch
from torch import Tensor, nn

from realloc.kernels.digest import digest


@final
class Watch:
    """Compares what modules hold and the versions of all tensors at each look, and the sum of one of them, in turn.

    Whatever writes to a tensor raises its version, but for writes through ``.data``, which only the sum shows, within
    as many looks as there are tensors. A hook that comes later counts too: it may change what a module gives.

    Args:
        base: what holds them all.
        lower: the modules that are watched, without ``base``; one that they hold and that is not among them is not.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> watch = Watch(model, [model[0]])
    >>> _ = model[0].weight.data.fill_(9.0)
    >>> watch.changed(), watch.changed(), watch.changed()  # which of two tensors is summed is a matter of turns
    (False, True, False)
    >>> model[0].bias = None
    >>> watch.changed(), watch.changed()
    (True, False)
    """

    def __init__(self, base: nn.Module, lower: Sequence[nn.Module]) -> None:
        inside = set(lower)
        self._outside = {child for module in lower for child in module.children()} - inside
        holders = [module for module in base.modules() if module not in inside] if inside else []
        self._places = [(m._modules, name) for m in holders for name, child in m._modules.items() if child in inside]
        self._turn = 0
        self.accept()

    def accept(self) -> None:
        """Take all as it is now for unchanged."""
        self._tops = [held.get(name) for held, name in self._places]
        modules = list(self._below())
        self._held: list[dict[Any, Any]] = [
            held
            for m in modules
            for held in (m._parameters, m._buffers, m._modules, m._forward_pre_hooks, m._forward_hooks)
        ]
        self._parts = self._now()
        self._tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        self._versions = [t._version for t in self._tensors]
        self._addresses = [t.data_ptr() for t in self._tensors]
        self._sums = [_sum(t) for t in self._tensors]

    def changed(self) -> bool:
        """Whether anything was, since the last look that said so, or since the start."""
        same = self._is_in_place() and self._is_unwritten()
        if not same:
            self.accept()
        return not same

    def digest(self) -> int:
        """Of all bytes, 63 bits: equal for equal weights, also in another process."""
        parts = [digest([tensor]) for tensor in self._tensors]  # one by one: `digest` copies what it is given
        return digest([torch.tensor(parts, dtype=torch.int64)])

    def _below(self) -> Iterator[nn.Module]:
        """Every module that is watched, once, from the top down."""
        seen: set[nn.Module] = set(self._outside)
        left = [module for module in reversed(self._tops) if module is not None]
        while left:
            module = left.pop()
            if module not in seen:
                seen.add(module)
                yield module
                left += reversed(list(module.children()))

    def _now(self) -> list[Any]:
        """All that the modules hold, in one go: this is called at every step."""
        return list(chain.from_iterable(map(dict.values, self._held)))

    def _is_in_place(self) -> bool:
        if any(held.get(name) is not top for (held, name), top in zip(self._places, self._tops, strict=True)):
            return False
        now = self._now()
        return len(now) == len(self._parts) and all(map(is_, now, self._parts))

    def _is_unwritten(self) -> bool:
        if not self._tensors:
            return True
        self._turn = (self._turn + 1) % len(self._tensors)
        return (
            all(t._version == v for t, v in zip(self._tensors, self._versions, strict=True))
            and all(t.data_ptr() == a for t, a in zip(self._tensors, self._addresses, strict=True))
            and _sum(self._tensors[self._turn]) == self._sums[self._turn]
        )


def _sum(tensor: Tensor) -> float:
    return float(tensor.detach().float().sum())
