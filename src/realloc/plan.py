"""Plans: the frozen result of a decision. Dry run, apply, record and other ranks all read the same object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, final

from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Change:
    """What a move does to one site, in units."""

    site: str
    before: int
    after: int
    released: Tensor  # int64, sorted places that lose their slots
    acquired: Tensor  # int64, sorted places that get one
    keep_threshold: float | None = None  # highest keep score among the released
    want_threshold: float | None = None  # lowest want score among the acquired
    predicted_gain: float = 0.0  # sum of the want scores of the acquired
    gradient: Tensor | None = None  # [len(acquired), size], where the moments of a new slot start from it
    jump: float | None = None  # by how much the layer's weight changes: Frobenius norm of what is released
    values: Tensor | None = None  # [after, in + out], where what stays is written anew (its moments start anew too)

    @property
    def moves_anything(self) -> bool:
        """Whether the site changes at all."""
        return bool(self.released.numel() or self.acquired.numel())


@final
@dataclass(frozen=True, eq=False)
class Write:
    """What a move of widths writes beside its gather. Positions along the other side are those of before the move.

    kind: ``rows``, ``columns``: values ``[units, entries]`` of a parameter, its units first. ``reader``: added to what
    the weight's layer gives out, ``[its rows]``: to its bias, or taken from the running mean of the norm behind it.
    ``gone``: the same, for what units that go gave on average; a new row that copies another gets what that one gets.
    ``copies``: the weight's new units compute what these, of before, compute. ``running``: which units, of before,
    new ones take the running statistics of a norm's weight from.
    """

    parameter: str
    kind: Literal["rows", "columns", "reader", "gone", "copies", "running"]
    units: Tensor | None  # int64, positions after the move
    values: Tensor


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """A move, or the reason why there is none."""

    step: int
    changes: tuple[Change, ...]
    skipped: str | None = None
    note: str = ""  # what the record should say of how it came about
    writes: tuple[Write, ...] = ()

    @property
    def units_moved(self) -> int:
        """Units that get a slot by this plan."""
        return sum(c.acquired.numel() for c in self.changes)

    @property
    def moves_anything(self) -> bool:
        """Whether any site changes."""
        return any(c.moves_anything for c in self.changes)


@final
@dataclass(frozen=True)
class Note:
    """What stays of a change once it is made: counts and thresholds, no places."""

    step: int
    site: str
    before: int
    after: int
    released: int
    acquired: int
    keep_threshold: float | None
    want_threshold: float | None
    jump: float | None = None
    note: str = ""  # of its plan


def notes_of(plan: Plan) -> list[Note]:
    """The notes of a plan, one for each site it names."""
    return [
        Note(
            plan.step, c.site, c.before, c.after, c.released.numel(), c.acquired.numel(), c.keep_threshold,
            c.want_threshold, c.jump, plan.note,
        )
        for c in plan.changes
    ]  # fmt: skip


WORDS: Final = {
    "rank": "parameters in ranks",
    "delta": "weights in deltas",
    "wide": "parameters in layers whose widths move",
}  # what a site holds, by its storage


@final
@dataclass(frozen=True)
class SiteLine:
    """One row of the table that `prepare` returns."""

    name: str
    shape: tuple[int, ...]
    capacity: int  # weights the dense layer has
    held: int  # weights it starts with
    storage: str  # packed, masked, rank or delta
    compute: str  # kernel, scatter, gather or dense
    note: str = ""


@final
@dataclass(frozen=True)
class StartPlan:
    """What `prepare` does, or with ``dry_run=True`` would do: sites, budget, and what stays dense and why."""

    method: str
    density: float  # share of the weights held at the end; for ranks, of the parameters of the layers they stand beside
    budget: int  # parameters
    sites: tuple[SiteLine, ...]
    dense: tuple[tuple[str, str], ...]  # (parameter, why it stays dense)
    notes: tuple[str, ...] = ()
    asked: str = ""  # what the method was asked for, in words
    where: tuple[tuple[str, ...] | None, tuple[str, ...]] = (None, ())  # layers that it named, and that it excluded

    def __str__(self) -> str:
        width = max([4, *(len(s.name) for s in self.sites)])
        what = WORDS.get(self.sites[0].storage, "weights") if self.sites else "weights"
        held, most = sum(s.held for s in self.sites), sum(s.capacity for s in self.sites)
        lines = [f"{self.method}: {held:,} {what} held of {most:,}"]
        lines += [f"  {'site':<{width}} {'shape':>16} {'held':>12} {'density':>8}  storage  compute"]
        for s in self.sites:
            shape = "x".join(map(str, s.shape))
            share = s.held / s.capacity if s.capacity else 0.0
            row = (
                f"  {s.name:<{width}} {shape:>16} {s.held:>12,} {share:>8.2%}  {s.storage:<7}  {s.compute:<7} {s.note}"
            )
            lines.append(row.rstrip())
        lines += [f"  {name}: dense ({why})" for name, why in self.dense]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


@final
@dataclass(frozen=True)
class LayerPlan:
    """Which layers train at the start, and what a step in the layers costs, forward and backward, in one unit."""

    method: str
    layers: tuple[tuple[str, bool], ...]  # name, and whether it trains
    cost: int
    budget: int
    full: int  # where every layer trains
    unit: str  # FLOPs a token, or microseconds a step
    trainable: int  # parameters
    parameters: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        on = sum(trains for _, trains in self.layers)
        lines = [
            f"{self.method}: {on} of {len(self.layers)} layers train; {self.trainable:,} of {self.parameters:,} "
            "parameters",
            f"  {self.cost:,} {self.unit} in the layers, budget {self.budget:,}; {self.full:,} where all train",
        ]
        lines += [f"  {name}: {'trains' if trains else 'frozen'}" for name, trains in self.layers]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
