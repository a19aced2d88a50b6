"""The ways from a model and its parameters back to the engine. A copied or pickled model brings none of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.engine import Engine
from realloc.errors import StateError

LINK = "realloc_link"
TAKEN: Final[weakref.WeakSet[torch.optim.Optimizer]] = weakref.WeakSet()  # that serve an attached model


def refuse_taken(optimizer: torch.optim.Optimizer) -> None:
    """One optimizer serves one attached model, whether its weights, ranks or layers move.

    Raises:
        StateError: it serves one already.
    """
    if optimizer in TAKEN:
        raise StateError(
            "this optimizer serves an attached model already; detach() that handle first, or put both models into one "
            "nn.ModuleDict and attach that"
        )


@final
class Link:
    """The way from a model to its engine, and to the dense weights it had; a copy or a pickle has neither."""

    def __init__(self, old: dict[str, weakref.ref[nn.Parameter]] | None = None) -> None:
        self.engine: Engine | None = None
        self.old = old or {}
        self.order: list[Tensor | str] = []  # the optimizer's parameters before attach; a packed weight by its name

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        return Link()

    def __reduce__(self) -> tuple[type[Link], tuple[()]]:
        return (Link, ())


@final
class Hook:
    """A hook on a parameter that runs ``act``; the hook of a copied parameter does nothing."""

    def __init__(self, act: Callable[[], None] | None = None) -> None:
        self.act = act

    def __call__(self, tensor: Tensor) -> None:
        """Run, whatever the tensor: the parameter, or the gradient that is about to reach it."""
        if self.act is not None:
            self.act()

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return (Hook, ())
