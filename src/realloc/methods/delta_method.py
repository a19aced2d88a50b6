"""A delta method is a recipe too: which weights of frozen linear layers may differ, and how those move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, final

from torch import Tensor

from realloc.errors import ConfigError
from realloc.methods.beside import Beside
from realloc.methods.method import Method, MethodMaker, Where, check_share


@final
@dataclass(frozen=True)
class DeltaMethod:
    """The parts of one way to spend a budget of parameters on sparse deltas over frozen linear layers.

    How they start and move is a method of weights, made for the density that the budget comes to; its scores see the
    deltas: ``keep`` with values ranks |delta|, and only where places are drawn at the start (``place``) are the values
    those of the frozen weights.

    Example (a stranger's method: RigL over a frozen model)::

        DeltaMethod("rigl_delta", rule=methods.rigl, budget=300_000)

    Args:
        name: of the method.
        rule: density -> Method.
        budget: parameters.
        density: share of the weights of the layers that take part, instead of ``budget``.
        begin: "rule": the rule's own start; "gradient": where the gradient of a few batches is largest over all layers,
            see `realloc.calibrate`.
    """

    name: str
    rule: MethodMaker = field(compare=False)
    budget: int | None = None
    density: float | None = None
    begin: Literal["rule", "gradient"] = "rule"
    reference: str = ""
    places: Mapping[str, Tensor] = field(default_factory=dict, compare=False)  # of each weight by name: what was chosen
    where: Beside = field(default_factory=Beside)

    def __post_init__(self) -> None:
        asked = [name for name in ("budget", "density") if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ConfigError(
                f"{self.name} got {' and '.join(asked) or 'neither'}; give budget= or density=, one of them"
            )
        value = self.budget
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"budget is {value!r}; it is a number of parameters: an integer of 1 or more")
        if self.density is not None:
            check_share("density", self.density)
        if self.begin not in ("rule", "gradient"):
            raise ConfigError(f"begin is {self.begin!r}; use 'rule' or 'gradient'")

    def on(self, *layers: str, exclude: tuple[str, ...] = (), train: tuple[str, ...] | None = None) -> DeltaMethod:
        """The same method on named linear layers (shell patterns over module names).

        Args:
            layers: which may hold deltas; none: every plain nn.Linear but those of the head.
            exclude: which of them may not.
            train: modules that train in full beside the deltas; None: the task head; (): nothing.

        Raises:
            ConfigError: a string where a tuple of patterns belongs.
        """
        return replace(self, where=Beside.of(layers, exclude, train))

    def rule_at(self, density: float) -> Method:
        """The method that moves the deltas of a model.

        Raises:
            ConfigError: a rule that makes no method, or one whose density falls: a delta's budget stays.
        """
        made = self.rule(density)
        if not isinstance(made, Method):
            raise ConfigError(f"rule of {self.name} made {made!r}; it must return a realloc.methods.method.Method")
        if made.held is not None or made.where != Where():
            raise ConfigError(
                f"rule of {self.name} made {made.name} with a density that falls, or with layers of its own; a delta's "
                "budget stays, and its layers are named by DeltaMethod.on(...)"
            )
        return made

    @property
    def asked(self) -> str:
        """What it was asked for, in words."""
        what = f"{self.budget} parameters" if self.budget is not None else f"density {self.density}"
        return f"{what}, places by {self._rule.place.name if self.begin == 'rule' else self.begin}"

    @property
    def measures(self) -> bool:
        """Whether it must be calibrated first."""
        return self.begin == "gradient" and not self.places

    @property
    def moves(self) -> bool:
        """Whether the method can ever move a weight of a delta."""
        return self._rule.moves

    @property
    def _rule(self) -> Method:
        return self.rule_at(self.density or 0.5)
