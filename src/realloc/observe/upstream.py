"""Whether what enters a layer was mixed by weights before: then it is not the input of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.errors import plain, warn

MOST: Final = 10_000  # steps of a graph that are looked at


def mixed_by(x: Tensor, own: nn.Parameter | None = None) -> Tensor | None:
    """A matrix that took part in a tensor, as autograd knows it; None if only vectors did, which scale or shift.

    Args:
        x: any tensor.
        own: a parameter that does not count.

    >>> layer, norm = nn.Linear(3, 2), nn.BatchNorm1d(3)
    >>> x = norm(torch.randn(4, 3))
    >>> mixed_by(x) is None, mixed_by(layer(x)) is layer.weight
    (True, True)
    """
    todo, seen = [x.grad_fn], {x.grad_fn}
    while todo and len(seen) < MOST:
        node: Any = todo.pop()
        parameter = getattr(node, "variable", None)
        if isinstance(parameter, Tensor) and parameter.ndim > 1 and parameter is not own:
            return parameter
        for before, _ in [] if node is None else node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                todo.append(before)
    return None


@final
class FirstLook:
    """A forward pre-hook that looks at what enters a layer in the first forward of training, and goes.

    The first layer that a model declares need not be the first that it calls, and its inputs are not the model's then.
    """

    def __init__(self, told: str, own: nn.Parameter | None = None) -> None:
        self.told, self.own = told, own
        self.done: Callable[[], object] = bool

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before a forward."""
        x = args[0] if args else None
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not isinstance(x, Tensor):
            return
        self.done()
        if x.requires_grad and mixed_by(x, self.own) is not None:
            warn(
                "RA007",
                f"{plain(self.told)} does not see the input of the model: other weights come before it, so columns of "
                "hidden units move; name the layer that sees the input: method.on('fc1')",
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstLook:
        return FirstLook(self.told)

    def __reduce__(self) -> tuple[type[FirstLook], tuple[str]]:
        return (FirstLook, (self.told,))
