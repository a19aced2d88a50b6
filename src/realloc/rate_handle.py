"""What `attach` returns for a method that shares learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from realloc.errors import ConfigError, nearest, plain
from realloc.schedule import Schedule, required

if TYPE_CHECKING:
    from realloc.rates import RateEngine


@final
class RateHandle:
    """A model whose groups share a fixed budget of learning rate, in millionths of what the scheduler sets."""

    def __init__(self, engine: RateEngine) -> None:
        self._engine = engine

    @property
    def budget(self) -> int:
        """Millionths to share: of the mean, ``groups * 10^6``; of relative movement 10^6; of the geometric mean 0."""
        return self._engine.budget

    @property
    def held(self) -> int:
        """Millionths that the groups have now; of relative movement, as foretold when they were shared."""
        self._engine.tie.require()
        return self._engine.shares.book.read("spent")

    @property
    def parked(self) -> int:
        """What is left of the budget."""
        return self.budget - self.held

    @property
    def rates(self) -> Mapping[str, float]:
        """Groups by name, from the input: the multiple of the scheduled rate that each trains at now."""
        self._engine.tie.require()
        return dict(zip(self._engine.units.names, self._engine.rates, strict=True))

    @property
    def steps(self) -> int:
        """Optimizer steps really taken since `attach`."""
        self._engine.tie.require()
        return self._engine.shares.book.read("steps")

    @property
    def moves(self) -> int:
        """Decisions that changed a share; one that is made at the start is none."""
        self._engine.tie.require()
        return self._engine.shares.book.read("moves")

    def summary(self) -> str:
        """A table of the groups and the budget."""
        self._engine.complain()
        method = self._engine.method
        lines = [
            f"{method.name}: {len(self.rates)} groups, {method.hold.name} held; {self.held:,} of {self.budget:,} "
            f"millionths; {self.moves} moves in {self.steps:,} steps"
        ]
        width = max(len(plain(name)) for name in self.rates)
        lines += [f"  {plain(name):<{width}} {rate:.3f}" for name, rate in self.rates.items()]
        return "\n".join(lines)

    def explain(self, name: str) -> str:
        """What one group got at each decision of this session.

        Raises:
            ConfigError: no such group; the nearest names are given.
        """
        names = self._engine.units.names
        if name not in names:
            raise ConfigError(f"no group {plain(str(name))!r}{nearest(str(name), names)}")
        place = names.index(name)
        lines = [f"{plain(name)}: {self.rates[name]:.3f} of the scheduled rate"]
        lines += [
            f"  step {one.step}: {one.before[place]:.3f} -> {one.after[place]:.3f}" for one in self._engine.recent
        ]
        due = self._engine.next_due()
        return "\n".join([*lines, "  no decision is due" if due is None else f"  the next is due at step {due}"])

    def reschedule(self, schedule: Schedule) -> None:
        """Share by another schedule from now on. It is no part of a checkpoint.

        Raises:
            ConfigError: no schedule.
        """
        self._engine.tie.require()
        self._engine.schedule = required(schedule)

    def detach(self) -> None:
        """Remove every hook and buffer; the optimizer keeps the user's groups and rates."""
        self._engine.detach()

    def state(self) -> dict[str, Any]:
        """The numbers of `summary`, as data."""
        return {
            "method": self._engine.method.name, "hold": self._engine.method.hold.name, "budget": self.budget,
            "held": self.held, "parked": self.parked, "moves": self.moves, "steps": self.steps, "rates": self.rates,
        }  # fmt: skip

    def __repr__(self) -> str:
        if not self._engine.tie.attached:
            return f"RateHandle({self._engine.method.name}, detached)"
        return f"RateHandle({self._engine.method.name}, {len(self.rates)} groups, moves={self.moves})"
