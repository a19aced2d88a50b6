"""A column method is a recipe too: which inputs of a model its first linear layer is connected to at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
        k: inputs held at the end.
        rule: number of inputs of the layer -> Method, of density ``k / inputs``.
        moves: whether it needs a schedule.
        reference: the paper.
        layer: name of the linear layer; None: the first one, which sees the model's input.
        storage: "auto", "packed" or "masked".
        rescale: widen the start values of the held columns for the smaller fan-in.

    Raises:
        ConfigError: a k that is not an integer of 1 or more.

    A stranger's method, RigL over inputs:

    >>> from realloc.methods.rigl import rigl
    >>> def rigl_columns(k: int) -> ColumnMethod:
    ...     return ColumnMethod("rigl_columns", k, rule=lambda inputs: rigl(k / inputs))
    >>> rigl_columns(2).at("fc.weight", 8).density
    0.25
    """

    name: str
    k: int
    rule: Callable[[int], Method] = field(compare=False)
    moves: bool = True
    reference: str = ""
    layer: str | None = None
    storage: Storage = "auto"
    rescale: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ConfigError(f"k is {self.k!r}; it is a number of inputs: an integer of 1 or more")

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
        if self.k > inputs:
            raise ConfigError(
                f"k is {self.k}, but {name} has {inputs} inputs; use k from 1 to {inputs}, or train without {self.name}"
            )
        made = self.rule(inputs)
        if not isinstance(made, Method):
            raise ConfigError(f"rule of {self.name} made {made!r}; it must return a realloc.methods.method.Method")
        if round(made.density * inputs) != self.k:
            raise ConfigError(
                f"rule of {self.name} made a method of density {made.density}, which is not {self.k} of {inputs} "
                "inputs; give it k / inputs"
            )
        where = Where((name,), storage=self.storage, block="column", rescale=self.rescale)
        return replace(made, name=self.name, reference=self.reference, amount=self.asked, where=where)

    @property
    def asked(self) -> str:
        """What it was asked for, in words."""
        return f"{self.k} inputs"
