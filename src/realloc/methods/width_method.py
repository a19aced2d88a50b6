"""A width method is a recipe: which units go, where new ones come, and how they start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from torch import Tensor

from realloc.allocate.room_of_widths import Allot, by_gain
from realloc.allocate.width_costs import Currency
from realloc.errors import ConfigError
from realloc.grow.grown import Growth
from realloc.grow.zero_output import zero_output
from realloc.schedule import Curve, constant
from realloc.scores.neuron_effect import neuron_effect
from realloc.scores.neurons import Need, WidthKeep, WidthWant


@final
@dataclass(frozen=True)
class Groups:
    """Which hidden dimensions take part, and within which widths."""

    layers: tuple[str, ...] | None = None  # patterns over the modules that make the units; None: every one found
    exclude: tuple[str, ...] = ()
    least: int = 1  # fewest units of a group
    most: float = 4.0  # multiple of its start width


@final
@dataclass(frozen=True)
class WidthMethod:
    """The parts of one way to move width: neurons, channels or heads, between the groups of one model.

    One decision: the ``held`` curve says which share of the budget may be spent, the ``drop`` curve which share of what
    is spent is released as well, lowest ``keep`` per cost first; ``share`` hands what is free out again by ``want``,
    and ``grow`` says how new units start. With ``within`` every group gets back as many as it released.

    Example (a stranger's method)::

        def by_size(drop: float = 0.1) -> WidthMethod:
            return WidthMethod("by_size", keep=neuron_magnitude, want=neuron_mean, drop=cosine(drop))
    """

    name: str
    reference: str = ""
    keep: WidthKeep = neuron_effect
    want: WidthWant | None = None  # None: nothing is ever acquired
    share: Allot = by_gain
    grow: Growth = zero_output
    drop: Curve = field(default_factory=lambda: constant(0.0))
    held: Curve | None = None  # share of the start's cost that may be spent, over the run
    within: bool = False
    threshold: float | None = None  # with `within`: every unit of at most this worth goes, whatever `drop` says
    mature: int = 0  # steps that a unit holds its place before it may go
    window: int = 1  # steps before a move whose effects are summed
    currency: Currency = "parameters"
    moments: Literal["zero", "median"] = "median"
    compensate: bool = True  # what a released unit gave on average goes into its readers' biases
    where: Groups = field(default_factory=Groups)
    example: Any = field(default=None, compare=False, repr=False)  # arguments of one forward

    @property
    def young(self) -> int:
        """Whole units are not damped: their second moments start at the median."""
        return 0

    @property
    def asked(self) -> str:
        """What it was asked for, in words."""
        return f"{self.share_at(1.0):g} of the {self.currency} of its start"

    @property
    def needs(self) -> frozenset[Need]:
        """What its scores ask for."""
        wanted = self.want.needs if self.want is not None else frozenset()
        more: set[Need] = {"products"} if self.grow.products else set()
        if self.compensate and self.moves:
            more.add("outputs")
        return self.keep.needs | wanted | more

    @property
    def falls(self) -> bool:
        """Whether its last decision is owed: the widths end narrower than they began."""
        return self.held is not None

    @property
    def looks(self) -> bool:
        """Whether a decision asks for what only a backward shows."""
        return bool({"outputs", "products"} & self.needs)

    @property
    def moves(self) -> bool:
        """Whether the method can ever move a unit."""
        return self.want is not None or self.held is not None

    def share_at(self, phase: float) -> float:
        """The share of the start's cost that may be spent at a phase of the run."""
        return 1.0 if self.held is None else self.held(phase)

    def __post_init__(self) -> None:
        for phase in (0.0, 1.0):
            if not 0 <= self.drop(phase) < 1:
                raise ConfigError(f"drop is {self.drop(phase)!r}; it is a share of what is held: 0 <= drop < 1")
            if not 0 < self.share_at(phase) <= 1:
                raise ConfigError(f"held is {self.share_at(phase)!r}; it is a share of the start: 0 < held <= 1")
        for name, value, lowest in (
            ("mature", self.mature, 0), ("window", self.window, 1), ("least", self.where.least, 1)
        ):  # fmt: skip
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ConfigError(f"{name} is {value!r}; use a whole number from {lowest} on")
        most = self.where.most
        if isinstance(most, bool) or not isinstance(most, (int, float)) or not math.isfinite(most) or most < 1:
            raise ConfigError(f"most is {most!r}; it is a multiple of a group's start width, 1 or more, such as 4")
        if self.currency not in ("parameters", "FLOPs"):
            raise ConfigError(f"currency is {self.currency!r}; use 'parameters' or 'FLOPs'")

    def on(
        self,
        *layers: str,
        exclude: tuple[str, ...] = (),
        least: int = 1,
        most: float = 4.0,
        example: Tensor | tuple[Any, ...] | dict[str, Any] | None = None,
    ) -> WidthMethod:
        """The same method on named layers (shell patterns over the modules that make the units).

        Args:
            layers: which hidden dimensions may move; none: every one that is found.
            exclude: which may not.
            least: fewest units of each.
            most: greatest width of each, as a multiple of its start.
            example: input of one forward, a tensor, a tuple or keywords: with it coupled dimensions are found in any
                model (by torch-pruning's dependency graph), and FLOPs are known of convolutions and of layers that see
                many positions; without one each counts for one, and an `nn.Sequential` is taken at its word: training
                forwards before the first step look whether its layers run within it.

        Raises:
            ConfigError: a string where a tuple belongs, bounds that make no sense.
        """
        if isinstance(exclude, str):
            raise ConfigError(f"exclude is the string {exclude!r}; use a tuple of patterns: ({exclude!r},)")
        groups = Groups(layers or None, tuple(exclude), least, most)
        return replace(self, where=groups, example=self.example if example is None else example)


def share_of(value: float, name: str = "drop") -> float:
    """A share of what is held, checked.

    Raises:
        ConfigError: it is outside [0, 1).

    >>> share_of(0.1)
    0.1
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"{name} is {value!r}; it is a share of what is held: 0 <= {name} < 1, such as 0.1")
    return float(value)
