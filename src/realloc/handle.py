"""What `attach` returns: the state of the budget at a glance, and the way back."""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn

from realloc.errors import ConfigError, StateError, nearest, plain
from realloc.plan import Note, StartPlan
from realloc.pool.found import everywhere
from realloc.pool.holdings import Holdings, Site
from realloc.pool.pairing import check_average
from realloc.schedule import Schedule, required
from realloc.sites.rank import RankSite
from realloc.tell_widths import explained, groups_named, released, table

if TYPE_CHECKING:
    from realloc.engine import Engine


@final
class Handle:
    """A model whose units move. Counts are integers, in weights unless the name says units."""

    def __init__(self, engine: Engine, start: StartPlan) -> None:
        self._engine = engine
        self.start = start
        self._notes: deque[Note] = engine.recent

    # the budget -------------------------------------------------------------------------------------------------

    @property
    def _holdings(self) -> Holdings:
        if not self._engine.tie.attached:
            raise StateError("this handle is detached; ask it before detach(), or attach() again")
        return self._engine.holdings

    @property
    def currency(self) -> str:
        """What the budget counts: "weights", "parameters" of ranks or widths, or "FLOPs" of one example's forward."""
        return self._holdings.currency

    @property
    def budget(self) -> int:
        """Held and parked together, in its currency. Constant."""
        return self._holdings.budget

    @property
    def held(self) -> int:
        """What sites hold now, counted as the budget is."""
        return self._holdings.held

    @property
    def parked(self) -> int:
        """Slots that no unit holds now: zero, counted."""
        return self.budget - self.held

    @property
    def steps(self) -> int:
        """Optimizer steps really taken since `attach`."""
        return self._holdings.book.read("steps")

    @property
    def moves(self) -> int:
        """Plans applied that moved at least one unit."""
        return self._holdings.book.read("moves")

    @property
    def units_moved(self) -> int:
        """Units that got a slot, over all moves."""
        return self._holdings.book.read("units_moved")

    @property
    def next_due(self) -> int | None:
        """The step after which the next move is due; None: no more."""
        return self._engine.next_due()

    @property
    def units(self) -> Mapping[str, int]:
        """Units that each site holds now, by parameter name; where widths move, the width of each layer."""
        return self._holdings.units

    @property
    def sites(self) -> Mapping[str, Site]:
        """Sites by parameter name; each has ``held`` and ``capacity``."""
        return self._holdings.sites

    def _site(self, name: str) -> Site:
        sites = self.sites
        found = sites.get(name) or sites.get(f"{name}.weight")
        if found is None:
            raise ConfigError(f"no site {plain(str(name))!r}{nearest(str(name), sites)}")
        return found

    def mask(self, name: str) -> Tensor:
        """Bool tensor of the dense shape: which weights are held now.

        Raises:
            ConfigError: no such site; the nearest names are given.
        """
        return self._site(name).mask().clone()  # a masked site would give its live buffer

    # words ------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """A table of the budget and the sites, and a warning where nothing was measured or nothing moved."""
        self._engine.complain()
        self._holdings.stamp()
        before = {line.name: line.held for line in self.start.sites}
        wide = self._holdings.wide[:1]
        fewer = released(wide[0]) if wide else sum(before.values()) - self.held
        what = wide[0].currency if wide else "weights"
        lines = [
            f"{self.start.method}: budget {self.budget:,} = {self.held:,} held + {self.parked:,} parked; "
            f"{self.moves} moves, {self.units_moved:,} units moved"
            + (f" and {fewer:,} {what} released for good" if fewer > 0 and not self._engine.method.want else "")
            + f" in {self.steps:,} steps"
        ]
        lines += [line for pool in wide for line in table(pool)]
        width = max(len(plain(name)) for name in self.sites)
        for name, site in self.sites.items():
            gained = site.held - before.get(name, site.held)
            lines.append(
                f"  {plain(name):<{width}} {site.held:>12,} of {site.capacity:>12,} {site.held / site.capacity:>8.2%} "
                f"{gained:>+10,}  {site.storage}, {site.compute}"
            )
        return "\n".join(lines)

    def explain(self, name: str) -> str:
        """Why a site gained or lost in the moves of this session: what was measured, and where the line was drawn.

        Where widths move, ``name`` is that of a hidden dimension, of a layer or of a parameter that follows it.
        """
        for pool in self._holdings.wide[:1]:
            told = [
                explained(pool, group, self._engine.method, self._notes, self.next_due)
                for group in groups_named(pool, name)
            ]
            return "\n".join(line for lines in told for line in lines)
        site, method = self._site(name), self._engine.method
        lines = [f"{plain(site.name)}: {site.held:,} of {site.capacity:,} weights held"]
        if isinstance(site, RankSite):
            lines = [f"{plain(site.name)}: rank {site.rank} of at most {site.cap}, {site.held:,} parameters"]
        keep, want = method.keep, method.want
        if keep is not None and want is not None:
            lines.append(f"  released by lowest {keep.name}, acquired by highest {want.name}")
        elif want is not None:
            lines.append(f"  acquired by highest {want.name}; nothing is released")
        elif method.moves:
            lines.append(f"  released by lowest {keep.name if keep else 'singular value'} as the density falls")
        for note in self._notes:
            if note.site != site.name:
                continue
            if not (note.released or note.acquired):
                free = site.capacity // site.grid.size - note.before
                rest = "what went came back, or the drop fraction is below one unit"
                if isinstance(site, RankSite):
                    rest = "its ranks were worth as much as others', or the budget paid for none"
                why = "every place is held" if not free else rest
                lines.append(f"  step {note.step}: nothing moved: {why}")
                continue
            known = note.keep_threshold is not None and note.released
            word = keep.name if keep else "singular value"
            gone = f", {word} up to {note.keep_threshold:.3g} went" if known else ""
            known = note.want_threshold is not None and note.acquired and not note.note  # evenly: by no score
            came = f", from {note.want_threshold:.3g} up came" if known else ""
            lines.append(
                f"  step {note.step}: {note.before:,} -> {note.after:,} units "
                f"(-{note.released:,} +{note.acquired:,}{gone}{came})"
                + ("" if note.jump is None else f"; the layer's weight jumped by {note.jump:.3g}")
                + (f"; {note.note}" if note.note else "")
            )
        if not any(note.site == site.name for note in self._notes):
            due = self.next_due
            lines.append("  no move yet; " + ("none is due" if due is None else f"the next one is due at step {due}"))
        return "\n".join(lines)

    def __repr__(self) -> str:
        if not self._engine.tie.attached:
            return f"Handle({self.start.method}, detached)"
        next_due = self._engine.next_due()
        return (
            f"Handle({self.start.method}, held={self.held:,}, parked={self.parked:,}, budget={self.budget:,}, "
            f"moves={self.moves}, next={'none' if next_due is None else f'step {next_due}'})"
        )

    def _repr_html_(self) -> str:
        if not self._engine.tie.attached:
            return f"<pre>{html.escape(repr(self))}</pre>"
        rows = "".join(
            f"<tr><td>{html.escape(plain(n))}</td><td>{s.held:,}</td><td>{s.capacity:,}</td>"
            f"<td>{s.held / s.capacity:.2%}</td><td>{s.storage}</td></tr>"
            for n, s in self.sites.items()
        )
        head = "<tr><th>site</th><th>held</th><th>capacity</th><th>density</th><th>storage</th></tr>"
        return f"<pre>{html.escape(repr(self))}</pre><table>{head}{rows}</table>"

    # acts -------------------------------------------------------------------------------------------------------

    def follow(self, average: nn.Module) -> None:
        """Keep an averaged copy of the model (EMA, SWA) in step with the moves.

        Raises:
            ConfigError: the copy has other sites, or is the model itself.
        """
        self._engine.tie.require()
        check_average(average, "placement")
        mine = self._holdings.prefix, [*self.sites]
        found = next((one for _, one in everywhere(average) if (one.prefix, [*one.sites]) == mine), None)
        if found is None:
            raise ConfigError("the copy does not hold the same sites; make it by copying the attached model")
        if found.owner is self._holdings.owner:
            raise ConfigError("the model cannot follow itself; give the averaged copy")
        self._engine.follow(found)

    def reschedule(self, schedule: Schedule) -> None:
        """Move by another schedule from now on, where the run turns out longer or shorter than it was thought to be.

        Call it between two steps, on all ranks alike. It is no part of a checkpoint: a resume gives `attach` the one
        that it goes on with.

        Raises:
            ConfigError: no schedule.
        """
        self._engine.reschedule(required(schedule))

    def restart_moments(self) -> None:
        """Accept a model loaded without its optimizer: the moments of all slots start anew."""
        self._engine.restart_moments()

    def compact(self) -> int:
        """Give parked slots back: shorten the pools to what is held. Returns the slots freed. Not under DDP.

        Where widths move, the pool of biases and norms keeps its room, and units go on to move within what is left.
        """
        return self._engine.compact()

    def detach(self) -> None:
        """Remove every hook and give back a plain dense model that the same optimizer goes on training."""
        self._engine.complain()
        self._engine.detach()

    def state(self) -> dict[str, Any]:
        """The numbers of `summary`, as data."""
        groups = {"widths": self._holdings.units} if self._holdings.wide else {}
        return {
            **groups,
            "method": self.start.method, "density": self.start.density, "budget": self.budget, "held": self.held,
            "parked": self.parked, "moves": self.moves, "units_moved": self.units_moved, "steps": self.steps,
            "sites": {name: {"held": site.held, "capacity": site.capacity} for name, site in self.sites.items()},
        }  # fmt: skip
