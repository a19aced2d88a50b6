"""Hearing what goes into linear layers, for a few batches and without a hook: a layer listens by its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import final

from torch import Tensor, nn

from realloc.sites.turned import turned

Hear = Callable[[str, Tensor], None]


@final
class ListeningLinear(nn.Linear):
    """`nn.Linear` that tells of its input."""

    realloc_hear: Callable[[Tensor], None]

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        self.realloc_hear(input)
        return super().forward(input)


@final
class ListeningConv1D(nn.Module):
    """`Conv1D` of transformers that tells of its input."""

    realloc_hear: Callable[[Tensor], None]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``[..., in]``."""
        self.realloc_hear(x)
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        return nn.functional.linear(x, weight.t(), bias)


@contextmanager
def listening(layers: Mapping[str, nn.Module], hear: Hear) -> Iterator[None]:
    """While it lasts, each layer tells ``hear`` its name and its input."""
    classes = {name: type(module) for name, module in layers.items()}
    try:
        for name, module in layers.items():
            module.__class__ = ListeningConv1D if turned(module) else ListeningLinear
            module.__dict__["realloc_hear"] = _teller(name, hear)
        yield
    finally:
        for name, module in layers.items():
            module.__class__ = classes[name]
            module.__dict__.pop("realloc_hear", None)


def _teller(name: str, hear: Hear) -> Callable[[Tensor], None]:
    return lambda x: hear(name, x)
