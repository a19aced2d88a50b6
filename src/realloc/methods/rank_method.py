"""A rank method is a recipe too: how many LoRA ranks each layer holds, and how they move while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

from torch import Tensor

from realloc.errors import ConfigError
from realloc.methods.beside import Beside
from realloc.observe.rank_probe import RankProbe
from realloc.schedule import Curve, constant
from realloc.scores.held_ranks import RankKeep, RankWant


@final
@dataclass(frozen=True)
class RankMethod:
    """The parts of one way to spend a budget of parameters on the ranks of frozen linear layers.

    One decision: the ``held`` curve says which share of the budget may be held; beyond it the ranks of lowest ``keep``
    go, and the ``drop`` curve says which share of what is held goes as well, to be handed out again by ``want``.
    Costs differ by layer, so everything is counted in parameters, and what pays for no rank stays parked.

    Example (a stranger's method)::

        def by_size(rank: int) -> RankMethod:
            keep = RankKeep("size", lambda site, generator: site.b.square().sum(1).double() / site.cost)
            return RankMethod("by_size", rank=rank, keep=keep, want=want_random, drop=cosine(0.3))

    Args:
        name: of the method.
        rank: ranks of each layer; the budget is what they cost.
        budget: parameters, instead of ``rank``.
        cap: most ranks of a layer, at every moment; None: ``rank``, twice as many where ranks are handed out, and what
            the start needs where it holds more than the end.
        scale: the layer adds ``scale * B'A``; alpha / r of LoRA, kept constant as r moves.
    """

    name: str
    rank: int | None = None
    budget: int | None = None
    cap: int | None = None
    scale: float = 1.0
    reference: str = ""
    keep: RankKeep | None = None  # None: nothing is ever cut
    want: RankWant | None = None  # None: nothing is ever added
    drop: Curve = field(default_factory=lambda: constant(0.0))
    held: Curve | None = None  # share of the budget held, over the run; may rise, and may start above 1
    last_only: bool = False  # cut once, by singular values, at the last due step
    betas: tuple[float, float] | None = None  # decays of the running means of the sensitivity and of its spread
    ranks: tuple[tuple[str, int], ...] = ()  # of each layer by name, instead of `rank`; `budget` may be more
    probe: RankProbe | None = None  # chooses `ranks` from a few batches: `realloc.calibrate`
    rows: Mapping[str, Tensor] = field(default_factory=dict, compare=False)  # of A, where ranks start with given ones
    rows_b: Mapping[str, Tensor] = field(default_factory=dict, compare=False)  # of B beside them; else it is zero
    where: Beside = field(default_factory=Beside)

    moments: ClassVar[Literal["zero"]] = "zero"  # a new rank starts with none
    young: ClassVar[int] = 0

    def __post_init__(self) -> None:
        asked = [name for name in ("rank", "budget") if getattr(self, name) is not None]
        if len(asked) != 1 and not (self.ranks and self.rank is None):
            raise ConfigError(f"{self.name} got {' and '.join(asked) or 'neither'}; give rank= or budget=, one of them")
        for name in ("rank", "budget", "cap"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                word = "parameters" if name == "budget" else "ranks of a layer"
                raise ConfigError(f"{name} is {value!r}; it is a number of {word}: an integer of 1 or more")
        if self.rank is not None and self.cap is not None and self.cap < self.rank:
            raise ConfigError(f"cap={self.cap} is below rank={self.rank}; raise cap, the most ranks of a layer")
        known = isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool)
        if not known or not math.isfinite(self.scale) or self.scale == 0:
            raise ConfigError(f"scale is {self.scale!r}; it is the factor of the ranks' part, alpha / r, such as 1.0")
        for beta in self.betas or ():
            if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < 1:
                raise ConfigError(f"betas are {self.betas!r}; decays of running means lie in 0 <= beta < 1")
        for phase in (0.0, 1.0):
            if not 0 <= self.drop(phase) < 1:
                raise ConfigError(f"drop is {self.drop(phase)!r}; it is a share of what is held: 0 <= drop < 1")
            if self.held is not None and not 0 <= self.held(phase) <= 16:
                raise ConfigError(f"held is {self.held(phase)!r}; it is a multiple of the budget: 0 to 16")

    def on(self, *layers: str, exclude: tuple[str, ...] = (), train: tuple[str, ...] | None = None) -> RankMethod:
        """The same method on named linear layers (shell patterns over module names).

        Args:
            layers: which may hold ranks; none: every plain nn.Linear but those of the head.
            exclude: which of them may not.
            train: modules that train in full beside the ranks; None: the task head; (): nothing.

        Raises:
            ConfigError: a string where a tuple of patterns belongs.
        """
        return replace(self, where=Beside.of(layers, exclude, train))

    def at_most(self) -> RankMethod:
        """The same method with its budget as the most that it ever holds, also where it starts with more than it keeps.

        >>> from realloc.schedule import linear
        >>> cut = RankMethod("cut", budget=90, held=linear(1.5, 1.0)).at_most()
        >>> cut.share(0.0) * 90, cut.share(1.0) * 90
        (90.0, 60.0)
        """
        peak = max(self.share(0.0), self.share(1.0))
        if self.held is None or peak == 1.0 or not peak:
            return self
        return replace(self, held=replace(self.held, start=self.held.start / peak, end=self.held.end / peak))

    @property
    def asked(self) -> str:
        """What it was asked for, in words."""
        what = f"rank {self.rank}" if self.rank else f"{self.budget} parameters"
        if self.ranks:
            what = f"{sum(rank for _, rank in self.ranks)} given ranks of {len(self.ranks)} layers"
        return f"{what}, scale {self.scale}" + ("" if self.cap is None else f", cap {self.cap}")

    @property
    def falls(self) -> bool:
        """Whether its last decision is owed: the share held changes over the run, or one cut ends it."""
        return self.held is not None or self.last_only

    @property
    def looks(self) -> bool:
        """Whether a decision asks for gradients of the frozen weights, which only a backward shows."""
        return self.want is not None and self.want.looks

    @property
    def moves(self) -> bool:
        """Whether the method can ever move a rank."""
        return self.want is not None or self.held is not None or self.last_only

    @property
    def measures(self) -> bool:
        """Whether it must be calibrated first."""
        return self.probe is not None

    def share(self, phase: float) -> float:
        """The multiple of the budget that may be held at a phase of the run."""
        return 1.0 if self.held is None else self.held(phase)
