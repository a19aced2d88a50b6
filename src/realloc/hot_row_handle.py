"""What `attach` returns for a method over rows that ids own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from realloc.errors import ConfigError, nearest, plain
from realloc.nn.rows import Rows
from realloc.nn.table import Table
from realloc.pool.pairing import check_average
from realloc.schedule import Schedule, required

if TYPE_CHECKING:
    from realloc.hot_rows import HotRowEngine


@final
class HotRowHandle:
    """A model whose embeddings share a fixed number of bytes. Counts are bytes, unless the name says rows."""

    def __init__(self, engine: HotRowEngine) -> None:
        self._engine = engine

    def _total(self, name: str) -> int:
        self._engine.tie.require()
        return sum(pool.book.read(name) for pool in self._engine.pools)

    @property
    def budget(self) -> int:
        """Bytes of all stores: weights, the moments that are assumed, the sketch. Constant."""
        return self._engine.budget

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        self._engine.tie.require()
        return self._engine.held

    @property
    def parked(self) -> int:
        """What is left of the budget: rows without an owner, and the rest that buys none."""
        return self.budget - self.held

    @property
    def owned_rows(self) -> int:
        """Ids that own a row now."""
        self._engine.tie.require()
        return sum(pool.store.owners for pool in self._engine.pools)

    @property
    def promoted_rows(self) -> int:
        """Rows that were given to ids so far."""
        return self._total("promoted")

    @property
    def demoted_rows(self) -> int:
        """Rows that were merged back so far."""
        return self._total("demoted")

    @property
    def moves(self) -> int:
        """Decisions, of a store each, that gave a row."""
        return self._total("moves")

    @property
    def steps(self) -> int:
        """Optimizer steps really taken since `attach`."""
        self._engine.tie.require()
        return self._engine.pools[0].book.read("steps")

    def owners(self, table: str | None = None) -> torch.Tensor:
        """Ids that own a row, int64, ascending; ``table`` by its module name, needed where there are several.

        Raises:
            ConfigError: no such table; the nearest names are given.
        """
        self._engine.tie.require()
        number, place = self._find(table)
        return self._engine.pools[number].owned_by(place)

    def _find(self, table: str | None) -> tuple[int, int]:
        names = {name: key for key, name in self._engine.names.items()}
        if table is None and len(names) == 1:
            return next(iter(names.values()))
        if table not in names:
            near = "" if table is None else nearest(table, names)
            raise ConfigError(f"table is {table!r}{near}; the tables are {', '.join(map(plain, names))}")
        return names[table]

    def summary(self) -> str:
        """A table of the stores and the budget."""
        self._engine.complain()
        engine = self._engine
        lines = [
            f"{engine.method.name} by {engine.method.score.name}: {self.held:,} of {self.budget:,} bytes; "
            f"{self.owned_rows:,} rows owned; {self.moves} moves in {self.steps:,} steps"
        ]
        for (number, table), name in engine.names.items():
            split, owners = engine.pools[number].store.split, len(engine.pools[number].owned_by(table))
            told = plain(name) or "the embedding"
            lines.append(f"  {told}: {owners:,} ids own a row of {split.own:,}, the others share {split.shared:,}")
        return "\n".join(lines)

    def explain(self, id: int, table: str | None = None) -> str:
        """What is known of one id, and when it got or gave a row in this session.

        Raises:
            ConfigError: no id, or no such table.
        """
        self._engine.tie.require()
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < 2**63:
            raise ConfigError(f"id is {id!r}; it is an integer from 0 to 2^63 - 1")
        engine, (number, place) = self._engine, self._find(table)
        store, one = engine.pools[number].store, torch.tensor([id], device=engine.pools[number].store.weight.device)
        row, slot = int(store.rows_of(place, one)), int(store.places(place, one))
        reads = f"owns row {row}" if row >= store.split.shared else f"reads the shared row {row}"
        score = float(store.buffer("scores")[slot]) - float(store.buffer("inherited")[slot])
        known = f"score {score:.4g}" if slot >= 0 else "not in the sketch"
        name = engine.names[number, place]
        lines = [f"{plain(name)} {id}: {reads}, {known}"]
        for plan in engine.recent:
            for change in plan.changes:
                for word, ids in (("got", change.acquired), ("gave back", change.released)):
                    if change.site == name and bool((ids == id).any()):
                        lines.append(f"  step {plan.step}: {word} a row")
        due = engine.next_due()
        return "\n".join([*lines, "  no decision is due" if due is None else f"  the next is due at step {due}"])

    def follow(self, average: nn.Module) -> None:
        """Keep an averaged copy of the model (EMA, SWA) in step with the rows: its own rows move as the model's do.

        Raises:
            ConfigError: the copy has other tables, or is the model itself.
            StateError: the copy's rows are of other ids already.
        """
        self._engine.tie.require()
        check_average(average, "sketch")
        found, mine = tuple(store for store, _ in stores_of(average)), [pool.store for pool in self._engine.pools]
        if [store.weight.shape for store in found] != [store.weight.shape for store in mine]:
            raise ConfigError("the copy does not have the same tables; make it by copying the attached model")
        if any(one is other for one, other in zip(found, mine, strict=True)):
            raise ConfigError("the model cannot follow itself; give the averaged copy")
        self._engine.follow(found)

    def restart_moments(self) -> None:
        """Forget the optimizer's state of all rows: for a model that was loaded without its optimizer."""
        self._engine.restart_moments()

    def reschedule(self, schedule: Schedule) -> None:
        """Decide by another schedule from now on. It is no part of a checkpoint.

        Raises:
            ConfigError: no schedule.
        """
        self._engine.reschedule(required(schedule))

    def detach(self) -> None:
        """Remove every hook. Rows stay with their ids: that is what the model has learnt."""
        self._engine.detach()

    def state(self) -> Mapping[str, Any]:
        """The numbers of `summary`, as data."""
        return {
            "method": self._engine.method.name, "score": self._engine.method.score.name, "budget": self.budget,
            "held": self.held, "parked": self.parked, "owned_rows": self.owned_rows,
            "promoted_rows": self.promoted_rows, "demoted_rows": self.demoted_rows, "moves": self.moves,
            "steps": self.steps,
        }  # fmt: skip

    def __repr__(self) -> str:
        if not self._engine.tie.attached:
            return f"HotRowHandle({self._engine.method.score.name}, detached)"
        return f"HotRowHandle({self._engine.method.score.name}, {self.owned_rows} rows owned, moves={self.moves})"


def stores_of(root: nn.Module) -> list[tuple[Rows, dict[int, str]]]:
    """The stores of a model's embeddings, in the order of their first tables, with the names of these by number."""
    found: list[tuple[Rows, dict[int, str]]] = []
    for name, module in root.named_modules():
        if isinstance(module, Table):
            known = next((names for store, names in found if store is module.store), None)
            if known is None:
                known = {}
                found.append((module.store, known))
            known[module.table] = name
    return found
