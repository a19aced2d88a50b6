"""What `attach` returns for a method over embedding rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from torch import nn

from realloc.errors import ConfigError, nearest, plain
from realloc.plan import StartPlan
from realloc.pool.pairing import check_average
from realloc.pool.rights import moments_bytes
from realloc.pool.rows import pools_of
from realloc.sites.row import RowSite

if TYPE_CHECKING:
    from realloc.rows import RowEngine


@final
class RowHandle:
    """A model whose embedding rows train in pools. Counts are parameters, unless the name says rows."""

    def __init__(self, engine: RowEngine, start: StartPlan) -> None:
        self._engine = engine
        self.start = start

    def _total(self, name: str) -> int:
        self._engine.tie.require()
        return sum(pool.book.read(name) for pool in self._engine.pools)

    @property
    def budget(self) -> int:
        """Parameters of all rows that may be held. Constant."""
        self._engine.tie.require()
        return self._engine.budget

    @property
    def held(self) -> int:
        """Parameters of the rows that are held now."""
        self._engine.tie.require()
        return self._engine.held

    @property
    def parked(self) -> int:
        """What is left of the budget: slots that no row holds."""
        return self.budget - self.held

    @property
    def sites(self) -> Mapping[str, RowSite]:
        """Tables by parameter name; each has ``rows``, ``held_rows`` and ``places()``."""
        self._engine.tie.require()
        return {pool.site.name: pool.site for pool in self._engine.pools}

    @property
    def steps(self) -> int:
        """Optimizer steps really taken since `attach` while a table was not frozen."""
        self._engine.tie.require()
        return max(pool.book.read("steps") for pool in self._engine.pools)

    @property
    def acquired_rows(self) -> int:
        """Rows that were given to ids so far."""
        return self._total("acquired")

    @property
    def released_rows(self) -> int:
        """Rows that went back to their table to make room."""
        return self._total("released")

    @property
    def left_rows(self) -> int:
        """Times that an id found no room in a step, and stayed as the table has it."""
        return self._total("left")

    @property
    def moments_bytes(self) -> int:
        """Bytes of the optimizer's state for the pools, now."""
        self._engine.tie.require()
        return moments_bytes(self._engine.optimizer, [pool.parameter for pool in self._engine.pools])

    # words ------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """The tables and the budget, and a warning where nothing was touched."""
        self._engine.complain()
        lines = [
            f"{self.start.method}: budget {self.budget:,} = {self.held:,} held + {self.parked:,} parked; "
            f"{self.acquired_rows:,} rows acquired, {self.released_rows:,} released in {self.steps:,} steps; "
            f"optimizer state {self.moments_bytes:,} bytes"
        ]
        width = max(len(plain(name)) for name in self.sites)
        lines += [
            f"  {plain(name):<{width}} {site.held_rows:>9,} of at most {site.rows:>9,} rows held, of {site.shape[0]:,}"
            for name, site in self.sites.items()
        ]
        return "\n".join(lines)

    def explain(self, name: str) -> str:
        """What became of one table's rows.

        Raises:
            ConfigError: no such table; the nearest names are given.
        """
        sites = self.sites
        site = sites.get(name) or sites.get(f"{name}.weight")
        if site is None:
            raise ConfigError(f"no table {plain(str(name))!r}{nearest(str(name), sites)}")
        book = next(pool for pool in self._engine.pools if pool.site is site).book
        return (
            f"{plain(site.name)}: {site.held_rows:,} of at most {site.rows:,} rows held\n"
            f"  {book.read('acquired'):,} acquired at their first touch, {book.read('released'):,} released as those "
            f"touched longest ago; {book.read('left'):,} times an id found no room in a step"
        )

    def __repr__(self) -> str:
        if not self._engine.tie.attached:
            return f"RowHandle({self.start.method}, detached)"
        return (
            f"RowHandle({self.start.method}, held={self.held:,}, parked={self.parked:,}, budget={self.budget:,}, "
            f"acquired_rows={self.acquired_rows:,})"
        )

    # acts -------------------------------------------------------------------------------------------------------

    def follow(self, average: nn.Module) -> None:
        """Keep an averaged copy of the model (EMA, SWA) in step with the rows.

        Raises:
            ConfigError: the copy has other tables, or is the model itself.
            StateError: the copy missed rows already.
        """
        self._engine.tie.require()
        check_average(average, "slots")
        found = pools_of(average)
        if [pool.site.name for pool in found] != [*self.sites]:
            raise ConfigError("the copy does not have the same tables; make it by copying the attached model")
        if found[0].module is self._engine.pools[0].module:
            raise ConfigError("the model cannot follow itself; give the averaged copy")
        self._engine.follow(found)

    def restart_moments(self) -> None:
        """Accept a model loaded without its optimizer: the moments of all rows start anew."""
        self._engine.restart_moments()

    def detach(self) -> None:
        """Remove every hook and give back plain embeddings, with which the same optimizer goes on."""
        self._engine.detach()

    def state(self) -> dict[str, Any]:
        """The numbers of `summary`, as data."""
        return {
            "method": self.start.method, "budget": self.budget, "held": self.held, "parked": self.parked,
            "acquired_rows": self.acquired_rows, "released_rows": self.released_rows, "left_rows": self.left_rows,
            "steps": self.steps, "moments_bytes": self.moments_bytes,
            "sites": {name: {"held_rows": s.held_rows, "rows": s.rows} for name, s in self.sites.items()},
        }  # fmt: skip
