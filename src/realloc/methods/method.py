"""A method is a recipe: it names the parts and cites its paper. It holds no training logic of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, final

from realloc.allocate.erdos_renyi import erk
from realloc.allocate.room import Allocator
from realloc.allocate.same_layer import same_layer
from realloc.errors import ConfigError
from realloc.observe.candidates import Candidates, everything
from realloc.schedule import Curve, constant
from realloc.scores.magnitude import magnitude
from realloc.scores.random import random
from realloc.scores.score import Score
from realloc.select.selector import Selector
from realloc.select.top_k import top_k

Storage = Literal["auto", "packed", "masked"]
Block = tuple[int, int] | Literal["column"]


def best(phase: float) -> Selector:
    """Pick the highest scores, at every phase."""
    return top_k


@final
@dataclass(frozen=True)
class Where:
    """Which layers take part, and how they are stored."""

    layers: tuple[str, ...] | None = None  # None: the field's defaults
    exclude: tuple[str, ...] = ()
    storage: Storage = "auto"
    block: Block = (1, 1)
    rescale: bool = False  # widen the start values for the smaller fan-in


@final
@dataclass(frozen=True)
class Method:
    """The parts of one way to move weights.

    One decision: ``keep`` ranks the held units, ``survive`` picks those that stay, the ``drop`` curve says which
    share is released, ``share`` says how many each site may acquire, ``want`` ranks the ``candidates`` and
    ``acquire`` picks among them. With ``across`` both rankings go over all sites at once, and ``survive``, ``share``
    and ``acquire`` have nothing to say. Without a ``want`` nothing is released either, whatever ``drop`` says. A score
    gets what it names in its ``needs``; the rest of what it sees is None.

    Example (a stranger's method in a few lines)::

        def loudest(density: float) -> Method:
            score = Score("loudest", frozenset({"values"}), lambda seen: seen.values.abs().amax(1))
            return Method("loudest", density, keep=score, want=gradient, drop=cosine(0.3))
    """

    name: str
    density: float  # share of the weights held at the end
    reference: str = ""
    start: Allocator = erk
    place: Score = random  # which units are held at the start
    keep: Score = magnitude
    want: Score | None = None  # None: nothing is ever acquired
    survive: Callable[[float], Selector] = best  # phase -> how those that stay are picked
    acquire: Selector = top_k
    share: Allocator = same_layer
    across: bool = False  # units compete over all sites of a pool: the least worth keeping go, the most wanted come
    candidates: Candidates = field(default_factory=everything)
    regrow: bool = True  # may a unit released in this move be acquired again by it
    drop: Curve = field(default_factory=lambda: constant(0.0))
    held: Curve | None = None  # share of the weights held, over the run; None: constant
    average: float | None = None  # decay of the running mean of the gradient
    moments: Literal["zero", "median", "seed"] = "median"  # how second moments of a new slot start (docs/adr/0007)
    impressions: bool = False  # is the gradient of each unit summed over its first interval, for the need "impression"
    settles: bool = False  # does the last move take every curve at its end, wherever ``until`` lies
    young: int = 0  # steps over which the update of a new slot is damped; 0: never
    amount: str = ""  # what it was asked for, in words; empty: its density
    where: Where = field(default_factory=Where)

    def __post_init__(self) -> None:
        check_share("density", self.density)
        for phase in (0.0, 1.0):
            share = self.drop(phase)
            if not 0.0 <= share < 1.0:
                raise ConfigError(f"drop is {share!r}; it is a share of the held weights: 0 <= drop < 1, such as 0.3")
            if self.held is not None:
                check_share("held", self.held(phase))
        known = self.average is None or (isinstance(self.average, (int, float)) and 0.0 <= self.average < 1.0)
        if not known or isinstance(self.average, bool):
            raise ConfigError(f"decay is {self.average!r}; the running mean of the gradient needs 0 <= decay < 1")
        picks = self.survive is not best or self.acquire is not top_k or self.share is not same_layer
        if self.across and (picks or not self.regrow):
            raise ConfigError(
                f"{self.name} ranks across all sites; leave survive, acquire, share and regrow as they are"
            )
        if self.candidates.steps > 1 and not self.across:
            raise ConfigError(f"{self.name} asks for {self.candidates}, which compete across sites; give across=True")
        if self.held is not None and self.held(0.0) < self.held(1.0):
            raise ConfigError(f"held goes from {self.held(0.0)} up to {self.held(1.0)}; a budget can only fall")

    def on(
        self,
        *layers: str,
        exclude: tuple[str, ...] = (),
        storage: Storage = "auto",
        block: Block = (1, 1),
        rescale: bool = False,
    ) -> Method:
        """The same method on named layers (shell patterns over module or parameter names), stored as said.

        It replaces the default choice and any earlier ``on``; it adds nothing to them. ``on("*")`` takes every weight
        that can take part, the classifier too. A block ``(r, c)`` makes each such tile one unit, "column" each input of
        a linear layer.

        Raises:
            ConfigError: an unknown storage, or a block that is neither two positive integers nor "column".
        """
        if storage not in ("auto", "packed", "masked"):
            raise ConfigError(f"storage is {storage!r}; use 'auto', 'packed' or 'masked'")
        if block != "column" and (
            not isinstance(block, tuple)
            or len(block) != 2
            or any(not isinstance(b, int) or isinstance(b, bool) or b < 1 for b in block)
        ):
            raise ConfigError(f"block is {block!r}; use two positive integers such as (4, 4), or 'column'")
        if isinstance(exclude, str):
            raise ConfigError(f"exclude is the string {exclude!r}; use a tuple of patterns: ({exclude!r},)")
        return replace(self, where=Where(layers or None, tuple(exclude), storage, block, rescale))

    @property
    def asked(self) -> str:
        """What it was asked for, in words."""
        return self.amount or f"density {self.density}"

    @property
    def start_density(self) -> float:
        """Share of the weights held at the start."""
        return self.density if self.held is None else self.held(0.0)

    @property
    def falls(self) -> bool:
        """Whether its last decision is owed: the density falls, and only then ends where it was asked to."""
        return self.held is not None

    @property
    def looks(self) -> bool:
        """Whether a decision asks for gradients that only a backward shows: those of units that are not held."""
        needs = self.keep.needs | (self.want.needs if self.want else frozenset())
        return "gradient" in needs or self.moments == "seed" or self.average is not None

    @property
    def moves(self) -> bool:
        """Whether the method can ever move a unit."""
        return self.want is not None or self.held is not None


def check_share(name: str, value: float) -> None:
    """Refuse a share outside (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 < value <= 1:
        raise ConfigError(f"{name} is {value!r}; it is a share of the weights: 0 < {name} <= 1, such as 0.1")


MethodMaker = Callable[..., Method]
