"""What `attach` returns for a method that chooses layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from realloc.errors import ConfigError, StateError, nearest, plain
from realloc.plan import LayerPlan
from realloc.pool.rights import moments_bytes
from realloc.schedule import Schedule, required
from realloc.trial import Trial, numbered

if TYPE_CHECKING:
    from realloc.layers import LayerEngine


@final
class LayerHandle:
    """A model whose layers train in turn.

    The budget counts FLOPs of one token in the layers, or with `LayerMethod.costing` microseconds of a cost table.
    """

    def __init__(self, engine: LayerEngine, start: LayerPlan) -> None:
        self._engine = engine
        self.start = start

    @property
    def budget(self) -> int:
        """Cost that the method may use, an integer. Constant, but for a checkpoint that brings its own cost table."""
        return self._engine.ledger.budget

    @property
    def held(self) -> int:
        """Cost of a step as the layers train now."""
        self._engine.require()
        return self._engine.ledger.cost(self._engine.rights.on)

    @property
    def parked(self) -> int:
        """What is left of the budget."""
        return self.budget - self.held

    @property
    def layers(self) -> Mapping[str, bool]:
        """Layers by name, from the input: whether each trains now."""
        self._engine.require()
        on = self._engine.rights.on
        return {name: layer in on for layer, name in enumerate(self._engine.blocks.names)}

    @property
    def steps(self) -> int:
        """Optimizer steps really taken since `attach`."""
        self._engine.require()
        return self._engine.rights.book.read("steps")

    @property
    def moves(self) -> int:
        """Choices after the start that changed what trains."""
        self._engine.require()
        return self._engine.rights.book.read("moves")

    @property
    def hits(self) -> float | None:
        """Share of the examples that were read from the cache since the prefix was frozen; None: nothing is cached."""
        passage = self._engine.passage
        store = None if passage is None else passage.store
        return None if store is None or not store.visits else store.hits / store.visits

    @property
    def cached_bytes(self) -> int:
        """Bytes of activations that are kept now."""
        passage = self._engine.passage
        return 0 if passage is None or passage.store is None else passage.store.rows.bytes

    @property
    def moments_bytes(self) -> int:
        """Bytes of the optimizer's state for the whole model, now."""
        return moments_bytes(self._engine.optimizer, self._engine.owner.parameters())

    # words ------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """A table of the layers and the budget."""
        self._engine.complain()
        hits = self.hits
        lines = [
            f"{self.start.method}: {sum(self.layers.values())} of {len(self.layers)} layers train; {self.held:,} of "
            f"{self.budget:,} {self._engine.ledger.costs.unit}; {self.moves} moves in {self.steps:,} steps",
            f"  optimizer state {self.moments_bytes:,} bytes; cache {self.cached_bytes:,} bytes"
            + ("" if hits is None else f", {hits:.0%} of the examples were read from it"),
        ]
        width = max(len(plain(name)) for name in self.layers)
        lines += [f"  {plain(name):<{width}} {'trains' if on else 'frozen'}" for name, on in self.layers.items()]
        return "\n".join(lines)

    def explain(self, name: str) -> str:
        """How many layers started and stopped at each choice of this session, and whether this one trains.

        Raises:
            ConfigError: no such layer; the nearest names are given.
        """
        if name not in self.layers:
            raise ConfigError(f"no layer {plain(str(name))!r}{nearest(str(name), self.layers)}")
        lines = [f"{plain(name)}: {'trains' if self.layers[name] else 'frozen'}"]
        lines += [
            f"  step {note.step}: {note.before} -> {note.after} layers (-{note.released} +{note.acquired})"
            for note in self._engine.recent
        ]
        due = self._engine.next_due()
        return "\n".join([*lines, "  no choice is due" if due is None else f"  the next choice is due at step {due}"])

    def __repr__(self) -> str:
        if not self._engine.tie.attached:
            return f"LayerHandle({self.start.method}, detached)"
        on = [name for name, trains in self.layers.items() if trains]
        return f"LayerHandle({self.start.method}, {len(on)} of {len(self.layers)} layers train, moves={self.moves})"

    # acts -------------------------------------------------------------------------------------------------------

    def train(self, layers: Sequence[str | int]) -> None:
        """Let exactly these layers train from now on. One that starts has fresh moments; one that stops loses its own.

        Args:
            layers: names as in ``layers``, or numbers from the input.

        Raises:
            ConfigError: no such layer, or one that the optimizer does not hold.
            StateError: the method chooses by itself, several processes train, or a trial runs.
        """
        self._engine.require()
        chosen = numbered(self._engine, layers)
        if self._engine.trying:
            raise StateError("a trial runs; leave it first")
        self._engine.direct(chosen)

    def trial(self, layers: Sequence[str | int]) -> Trial:
        """Try other layers: ``with handle.trial(layers) as trial:`` a few of your own steps, and all is taken back.

        Judge inside the block, and call ``trial.adopt()`` after it to go on with what it found.

        Raises:
            ConfigError: no such layer, or one that the optimizer does not hold.
            StateError: the method chooses by itself, several processes train, or a trial runs already.
        """
        self._engine.require()
        return Trial(self._engine, numbered(self._engine, layers))

    def reschedule(self, schedule: Schedule) -> None:
        """Choose by another schedule from now on, where the run turns out longer or shorter than it was thought to be.

        Call it between two steps. It is no part of a checkpoint: a resume gives `attach` the one that it goes on with.

        Raises:
            ConfigError: no schedule.
        """
        self._engine.reschedule(required(schedule))

    def epoch_over(self, examples: int) -> None:
        """Say that an epoch of so many examples is over; a callback does, where the cache was told to wait for it."""
        if self._engine.tie.attached and self._engine.passage is not None:
            self._engine.passage.epoch_over(examples)

    def detach(self) -> None:
        """Remove every hook, gate and buffer, and let train what could train before `attach`.

        Raises:
            StateError: a trial runs: what it changed could not be taken back.
        """
        if self._engine.trying:
            raise StateError("a trial runs; leave it first")
        self._engine.detach()

    def state(self) -> dict[str, Any]:
        """The numbers of `summary`, as data."""
        return {
            "method": self.start.method, "unit": self._engine.ledger.costs.unit, "budget": self.budget,
            "held": self.held, "parked": self.parked, "moves": self.moves, "steps": self.steps,
            "layers": dict(self.layers), "hits": self.hits, "cached_bytes": self.cached_bytes,
            "moments_bytes": self.moments_bytes,
        }  # fmt: skip
