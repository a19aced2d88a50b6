"""The first forward of training: whether the model's own code follows the widths that were read off it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn

from realloc.errors import ConfigError, plain
from realloc.find_widths import chains
from realloc.methods.width_method import WidthMethod
from realloc.pool.found import everywhere
from realloc.pool.restore import densify
from realloc.try_widths import that_follow


@final
class FirstForward:
    """A forward pre-hook that asks once, on a plain copy of the model and with the batch that came, and goes.

    What an nn.Sequential says of its layers is all that was read. A model may give a part of it to a reader of its own
    (``self.body[:2](x)``, a hook that keeps what a layer gives out), whose shape would not follow.
    """

    def __init__(self, method: WidthMethod | None = None, groups: frozenset[str] = frozenset()) -> None:
        self.method, self.groups = method, groups
        self.done: Callable[[], object] = bool

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward.

        Raises:
            ConfigError: a width of the model cannot move by itself; nothing was trained yet.
        """
        if self.method is None or torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
            return
        self.done()
        twin = copy.deepcopy(module)
        for holdings in [one for _, one in everywhere(twin)]:
            densify(holdings)
        read = [one for one in chains(twin).found if one.name in self.groups]
        try:
            _, stuck = that_follow(twin, lambda model: model(*args, **kwargs), read)
        except Exception:  # the model's own code may not run twice on one batch, or not in evaluation
            return
        if stuck:
            name, why = stuck[0]
            raise ConfigError(
                f"the width of {plain(name)!r} cannot move under {self.method.name} as it was read off its "
                f"nn.Sequential: {why}; look at the whole model with method.on(example=inputs), or leave it out with "
                f"method.on(exclude=({plain(name)!r},))"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> FirstForward:
        return FirstForward()

    def __reduce__(self) -> tuple[type[FirstForward], tuple[()]]:
        return (FirstForward, ())
