"""A column method is a recipe too: which inputs of a model its first linear layer is connected to at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import final

from realloc.errors import ConfigError
from realloc.methods.method import Method, Storage, Where


@final
@dataclass(frozen=True)
class ColumnMethod:
    """The parts of one way to spend a budget of k inputs.

    A unit is an input column: all the weights ``[out]`` that leave one input of an `nn.Linear`. How they start and move
    is a method of weights, made once the layer is known; ``moves`` says whether that one ever moves a unit. All other
    layers stay as they are.

    Args:
        name: of the method.
        k: inputs held at the end: a number, or a part of the layer's such as "10%", rounded down.
        rule: (k, number of inputs of the layer) -> Method, of density ``k / inputs``.
        moves: whether it needs a schedule.
        reference: the paper.
        layer: name of the linear layer; None: the first one, which sees the model's input.
        storage: "auto", "packed" or "masked".
        rescale: widen the start values of the held columns for the smaller fan-in.

    Raises:
        ConfigError: a k that is neither an integer of 1 or more nor a part above 0 % and at most 100 %.

    A stranger's method, RigL over inputs:

    >>> from realloc.methods.rigl import rigl
    >>> def rigl_columns(k: int | str) -> ColumnMethod:
    ...     return ColumnMethod("rigl_columns", k, rule=lambda k, inputs: rigl(k / inputs))
    >>> rigl_columns(2).at("fc.weight", 8).density, rigl_columns("50%").at("fc.weight", 8).density
    (0.25, 0.5)
    """

    name: str
    k: int | str
    rule: Callable[[int, int], Method] = field(compare=False)
    moves: bool = True
    reference: str = ""
    layer: str | None = None
    storage: Storage = "auto"
    rescale: bool = False

    def __post_init__(self) -> None:
        known = _part(self.k) if isinstance(self.k, str) else isinstance(self.k, int) and self.k >= 1
        if not known or isinstance(self.k, bool):
            raise ConfigError(
                f"k is {self.k!r}; it is a number of inputs: an integer of 1 or more, or a part of them such as '10%'"
            )

    def on(self, layer: str, *, storage: Storage = "auto", rescale: bool = False) -> ColumnMethod:
        """The same method on a linear layer named as in ``named_modules()``, stored as said.

        Raises:
            ConfigError: a name that is no string, or an unknown storage.
        """
        if not isinstance(layer, str):
            raise ConfigError(f"layer is {layer!r}; give the name of one linear layer, such as 'fc1'")
        if storage not in ("auto", "packed", "masked"):
            raise ConfigError(f"storage is {storage!r}; use 'auto', 'packed' or 'masked'")
        return replace(self, layer=layer, storage=storage, rescale=rescale)

    def at(self, name: str, inputs: int) -> Method:
        """The method that moves the columns of a layer: of a weight ``name`` with so many inputs.

        Raises:
            ConfigError: the layer has fewer inputs than k, or the rule holds another number of them at the end.
        """
        k = self.held_of(name, inputs)
        made = self.rule(k, inputs)
        if not isinstance(made, Method):
            raise ConfigError(f"rule of {self.name} made {made!r}; it must return a realloc.methods.method.Method")
        if round(made.density * inputs) != k:
            raise ConfigError(
                f"rule of {self.name} made a method of density {made.density}, which is not {k} of {inputs} "
                "inputs; give it k / inputs"
            )
        where = Where((name,), storage=self.storage, block="column", rescale=self.rescale)
        return replace(made, name=self.name, reference=self.reference, amount=self.asked, where=where)

    def held_of(self, name: str, inputs: int) -> int:
        """How many of a layer's inputs are held at the end.

        Raises:
            ConfigError: more than there are, or less than one.
        """
        if isinstance(self.k, str):
            found = math.floor(_part(self.k) * inputs)
            if not found:
                raise ConfigError(
                    f"k is {self.k!r}, less than one of the {inputs} inputs of {name}; use k from 1 to {inputs}"
                )
            return found
        if self.k > inputs:
            raise ConfigError(
                f"k is {self.k}, but {name} has {inputs} inputs; use k from 1 to {inputs}, or train without {self.name}"
            )
        return self.k

    @property
    def asked(self) -> str:
        """What it was asked for, in words."""
        return f"{self.k} inputs" if isinstance(self.k, int) else f"{self.k.strip()} of the inputs"


def _part(text: str) -> Fraction:
    """A percentage as an exact fraction; 0 where it is none."""
    try:
        part = Fraction(text.strip().removesuffix("%")) / 100
    except (ValueError, ZeroDivisionError):
        return Fraction(0)
    return part if text.strip().endswith("%") and 0 < part <= 1 else Fraction(0)
