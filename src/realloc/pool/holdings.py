"""All that one method holds on a model: its pools, its masks, its book."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from threading import RLock
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.errors import RecordError, StateError, plain
from realloc.kernels.digest import digest
from realloc.plan import StartPlan
from realloc.pool.book import Book
from realloc.pool.compact import compact
from realloc.pool.flat import FlatPool, check_placement
from realloc.pool.masked import MaskedPool, check_masks
from realloc.pool.names import FIRST
from realloc.pool.ranks import RankPool, check_ranks
from realloc.pool.widths import WidePool, check_widths
from realloc.sites.masked import MaskedSite
from realloc.sites.packed import PackedSite
from realloc.sites.rank import RankSite
from realloc.sites.wide import WideSite

FIELDS: Final = ("format", "seed", "steps", "moves", "units_moved", "skipped", "owed", "sites", "stamp", "budget")
FORMAT: Final = 2
DAMAGED = "the placement does not match its digest: the state is damaged, was cut or was written by hand"
MIXED = (
    "this copy of the model got the placement of its source without its values (an averaged copy that missed a move "
    "mixes units): call handle.follow(copy) right after making it, and average parameters only, not integer buffers"
)
SAME: Final = "attach the methods that it was saved with, to the same layers, in the same order"
UNDER_WAY: Final = -1  # the stamp of no placement
MOVING: Final = RLock()  # held while a placement is written; a thread that computes meanwhile waits for it
CUT = (
    "a move was interrupted: values, moments and places belong together no more. Load a checkpoint, model and "
    "optimizer, and make averaged copies that follow anew: handle.follow(copy)"
)
Tapped = PackedSite | RankSite | WideSite
Site = Tapped | MaskedSite
Flat = FlatPool | RankPool | WidePool


@final
class Holdings:
    """What `prepare` put on a model for one method."""

    def __init__(
        self,
        owner: nn.Module,
        flats: tuple[Flat, ...],
        masked: MaskedPool | None,
        frozen: tuple[str, ...] = (),
        prefix: str = FIRST,
    ) -> None:
        self.owner = owner
        self.prefix = prefix  # of everything that stands on the owner for them
        self.start: StartPlan | None = None  # what `prepare` did, and for which method
        self.flats = flats
        self.masked = masked
        self.frozen = frozen  # parameters that `prepare` froze; `detach` lets them train again
        self.book = Book(owner, f"{prefix}book", FIELDS, FORMAT)
        self._seen: Tensor | None = None  # the book, and its version, when it was last compared with the stamp
        self._version = -1
        self._stamp = 0  # the placement that the values belong to

    @property
    def pools(self) -> Iterator[Flat | MaskedPool]:
        """Every pool; units move within one, never between two."""
        yield from self.flats
        if self.masked is not None:
            yield self.masked

    @property
    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter whose placement is managed."""
        yield from (flat.parameter for flat in self.flats)
        if self.masked is not None:
            yield from (site.parameter for site in self.masked.sites)

    @property
    def sites(self) -> dict[str, Site]:
        """Sites by name."""
        return {site.name: site for pool in self.pools for site in pool.sites}

    def open_book(self, seed: int, budget: int) -> None:
        """Begin to count, when pools and masks are there."""
        self.book.register({"seed": seed, "budget": budget, "sites": self._names()})
        self.restamp()

    def _names(self) -> int:
        """What tells the names of the sites, in their order, from those of other methods, 63 bits."""
        names = "\n".join(self.sites).encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(names, digest_size=8).digest(), "big") >> 1

    @property
    def currency(self) -> str:
        """What the budget counts."""
        for first in self.wide[:1]:
            return first.currency
        return "parameters" if any(isinstance(flat, RankPool) for flat in self.flats) else "weights"

    @property
    def budget(self) -> int:
        """Held and parked together: weights, or where widths move, their currency."""
        if self.wide:
            return self.book.read("budget")
        return sum(pool.capacity * pool.unit_size for pool in self.pools)

    @property
    def wide(self) -> tuple[WidePool, ...]:
        """The pools of widths: those of one space, and then there are no others."""
        return tuple(flat for flat in self.flats if isinstance(flat, WidePool))

    @property
    def held(self) -> int:
        """What sites hold now, counted as the budget is."""
        for first in self.wide[:1]:
            return first.space.cost(first.widths, first.currency)
        return sum(pool.held * pool.unit_size for pool in self.pools)

    @property
    def units(self) -> dict[str, int]:
        """Units that each site holds now, by its name; of widths, each group."""
        for first in self.wide[:1]:
            return dict(zip(first.space.groups, first.widths, strict=True))
        return {name: site.held // site.grid.size for name, site in self.sites.items()}

    # the stamp: which placement the values belong to ------------------------------------------------------------

    def compute_stamp(self) -> int:
        """Digest of every placement, 63 bits."""
        buffers = self.owner._buffers
        return digest([buffer for name in self._placement() if (buffer := buffers[name]) is not None])

    def _placement(self) -> list[str]:
        return [name for pool in self.pools for name in pool.buffer_names]

    @property
    def cut(self) -> bool:
        """Whether a move of it was begun and has not ended."""
        return self._stamp == UNDER_WAY

    def restamp(self) -> int:
        """Write the stamp of the placement as it is now."""
        self._stamp = self.compute_stamp()
        self.book.write("stamp", self._stamp)
        self._see()
        return self._stamp

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seen": None}  # a copy has a book of its own, and looks at it first

    def _see(self) -> None:
        self._seen = self.book.tensor
        self._version = -1 if self._seen.is_inference() else self._seen._version

    def stamp(self) -> int:
        """The stamp of the values, once it is sure that the book still names it; read only where the book changed.

        Our own counting does not raise the buffer's version; whatever else writes to it does.

        Raises:
            StateError: someone wrote another model's placement over this one's, without its values.
        """
        book = self.owner._buffers[self.book.key]
        if book is None or book is not self._seen or (self._version >= 0 and book._version != self._version):
            with MOVING:  # a move that another thread is making ends first; one that was interrupted never does
                if self.cut:
                    raise StateError(CUT)
            if self.book.read("stamp") != self._stamp:
                raise StateError(MIXED)
            self._see()
        return self._stamp

    # forward ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Split every pool for one forward of the model."""
        self.stamp()
        for pool in self.flats:
            pool.open()

    def close(self) -> None:
        """End of that forward."""
        for pool in self.flats:
            pool.close()

    # loading ----------------------------------------------------------------------------------------------------

    def check_state(self, state: dict[str, Tensor], prefix: str) -> int | None:
        """Validate a state dict before anything of it is copied.

        Returns:
            The budget of the state, if it is that of a compacted model and this one must be shortened like it first.

        Raises:
            RecordError: it belongs to another model, budget or layout, or was tampered with.
        """
        names = [self.book.key, *self._placement(), *(flat.key for flat in self.flats)]
        missing = [name for name in names if prefix + name not in state]
        dense = [name for name in self.sites if prefix + name in state]
        if dense and len(missing) == len(names):
            if books_of(state, prefix):
                raise RecordError(f"{prefix}{dense[0]} is a dense weight in this state, and others move: {SAME}")
            raise RecordError(
                f"{prefix}{dense[0]} is a dense weight: this state comes from a plain model. "
                "Load it before prepare() or attach()"
            )
        if len(missing) == len(names):
            return None  # nothing of ours: torch names the missing keys, or strict=False asked for that
        if missing:
            raise RecordError(
                f"{prefix}{missing[0]} is missing: values never travel without their places; load the whole state"
            )
        book = state[prefix + self.book.key]
        if not self.book.fits(book):
            raise RecordError(f"{prefix}{self.book.key}: not the book of this version of realloc (format {FORMAT})")
        numbers, mine = self.book.named(book), self.book.read("budget")
        if numbers["sites"] != self._names():
            raise RecordError(f"{prefix}{self.book.key} is not that of {plain_names(self.sites)}: {SAME}")
        budget = numbers["budget"]
        compacted = budget < mine or self._shorter(state, prefix)
        for flat in self.flats:
            if isinstance(flat, WidePool):
                check_widths(flat, state, prefix, compacted)
            elif isinstance(flat, RankPool):
                check_ranks(flat, state, prefix, compacted)
            else:
                check_placement(flat, state, prefix, compacted)
        rest = 0 if self.wide else budget - sum(len(state[prefix + flat.key]) for flat in self.flats)
        held = 0 if self.masked is None else check_masks(self.masked, state, prefix)
        most = 0 if self.masked is None else self.masked.capacity * self.masked.unit_size
        if budget > mine or not held <= rest <= most:
            raise RecordError(f"the state has a budget of {budget:,} weights, this model {mine:,}")
        if digest([state[prefix + name] for name in self._placement()]) != numbers["stamp"]:
            raise RecordError(DAMAGED)
        return budget if compacted else None

    def _shorter(self, state: dict[str, Tensor], prefix: str) -> bool:
        """Whether a state has a shorter pool of widths: their budget need not fall where slots are given back."""
        return any(state[prefix + pool.key].shape[:1] < pool.parameter.shape[:1] for pool in self.wide)

    def shorten(
        self, state: dict[str, Tensor], prefix: str, budget: int, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Make room for a compacted state that was checked, of so many weights: only as much as it has."""
        for flat in self.flats:
            compact(flat, optimizer, len(state[prefix + flat.key]) // flat.unit_size)
        if self.masked is not None:
            rest = budget - sum(len(flat.parameter) for flat in self.flats)
            self.masked.capacity = rest // self.masked.unit_size

    def loaded(self) -> None:
        """After a load: values and places came together, so the new stamp is the right one.

        Gradients of another placement are dropped: they are those of other weights.
        """
        before, self._stamp = self._stamp, self.compute_stamp()
        if self._stamp != self.book.read("stamp"):
            raise RecordError(DAMAGED)
        if self._stamp != before:
            for parameter in self.parameters:
                parameter.grad = None
        self._see()


def books_of(state: Iterable[str], prefix: str) -> set[str]:
    """The books in a state, by their names on the owner, one for each method that it was saved with."""
    names = (key.removeprefix(prefix) for key in state if key.startswith(prefix))
    return {name for name in names if name.startswith(FIRST) and name.endswith("book") and "." not in name}


def plain_names(names: Iterable[str]) -> str:
    """The first of some names, for an error."""
    first, *rest = map(plain, names)
    return first + (f" and {len(rest)} more" if rest else "")


@contextmanager
def rewriting(*everyone: Holdings) -> Iterator[None]:
    """While placements of a model and of its copies are written: other threads wait, the stamps are taken back.

    They are renewed at the end; after an interrupt they are not, and what was cut short does not pass for whole.
    """
    with MOVING:
        for holdings in everyone:
            holdings._stamp = UNDER_WAY
            holdings.book.write("stamp", UNDER_WAY)
            holdings._seen = None
        yield
        for holdings in everyone:
            holdings.restamp()
