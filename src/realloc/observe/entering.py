"""What entered a layer in a forward: enough to run the layer once more, on the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.cache.inputs import hidden_of

_HIDDEN: Final = "hidden_states"


@final
@dataclass(frozen=True, eq=False)
class Entering:
    """The arguments of one call. The activations come first, or as ``hidden_states``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entering:
        """Keep a call: off the graph, its activations copied, and without the keys and values of earlier tokens."""
        kept = cls(tuple(map(_alone, args)), {name: _alone(value) for name, value in kwargs.items()})
        return kept.on(kept.hidden.clone())

    @property
    def hidden(self) -> Tensor:
        """The activations."""
        return hidden_of(self.args[0] if self.args else self.kwargs[_HIDDEN])

    def on(self, hidden: Tensor) -> Entering:
        """The same call on other activations."""
        if self.args:
            return replace(self, args=(hidden, *self.args[1:]))
        return replace(self, kwargs={**self.kwargs, _HIDDEN: hidden})

    def run(self, layer: nn.Module) -> Tensor:
        """What the layer makes of it."""
        return hidden_of(layer(*self.args, **self.kwargs))


def _alone(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.detach()
    return None if _keeps_tokens(value) else value


def _keeps_tokens(value: Any) -> bool:
    """Whether it is a cache of transformers, which a second call of the layer would lengthen."""
    return any(c.__name__ == "Cache" and c.__module__.startswith("transformers.") for c in type(value).__mro__)
