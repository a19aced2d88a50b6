"""A pool of embedding rows: one parameter ``[R, d]``, and which id's row lies in which slot. docs/adr/0013."""

from __future__ import annotations

from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from realloc.errors import RecordError, StateError
from realloc.kernels.digest import digest
from realloc.pool.book import Book
from realloc.pool.state import slotwise
from realloc.sites.row import RowEmbedding, RowSite

KEY: Final = "realloc_rows"  # name of the parameter on the embedding
BUFFERS: Final = ("realloc_slots", "realloc_touched", "realloc_counts", "realloc_stamp")
FIELDS: Final = ("format", "steps", "acquired", "released", "left")
FORMAT: Final = 1
UNDER_WAY: Final = -1  # the stamp of no placement
DAMAGED: Final = "the ids do not match their digest: the state is damaged, was cut or was written by hand"
APART: Final = (
    "this copy of the model got the ids of its source without their rows (an averaged copy that missed an id mixes "
    "rows), or a move was interrupted: call handle.follow(copy) right after making it, or load a checkpoint"
)
Fresh = dict[str, float]


@final
class RowPool:
    """The rows of one table. All that it knows lies on the embedding module, under constant names and lengths.

    Parameters: ``realloc_rows [R, d]``, the one that the user's optimizer has had all along; ``weight [V, d]``, frozen,
    which ids without a row read. Buffers:
        realloc_slots int32 [V]: the slot of each id, -1 where it has none.
        realloc_touched int64 [R]: the step in which each slot's row took part last, counted from 1; -1: parked.
        realloc_counts int64 [5]: format, steps while it trained, rows acquired, rows released, ids left without a row.
        realloc_stamp int64 [1]: digest of the slots.
    """

    storage: ClassVar[str] = "row"

    def __init__(self, module: nn.Embedding, name: str) -> None:
        self.module = module
        self.book = Book(module, "realloc_counts", FIELDS, FORMAT)
        self.site = RowSite(name, (module.num_embeddings, module.embedding_dim), module.padding_idx, self)
        self._seen: Tensor | None = None  # the stamp's buffer, and its version, when it was last compared
        self._version = -1
        self._stamp = 0  # the ids that the rows belong to

    # where things are -------------------------------------------------------------------------------------------

    @property
    def parameter(self) -> nn.Parameter:
        """The values, ``[R, d]``."""
        found = self.module._parameters[KEY]
        assert found is not None
        return found

    @property
    def table(self) -> nn.Parameter:
        """What ids without a row read, ``[V, d]``; frozen."""
        found = self.module._parameters["weight"]
        assert found is not None
        return found

    def _buffer(self, name: str) -> Tensor:
        found = self.module._buffers[name]
        assert found is not None
        return found

    @property
    def slots(self) -> Tensor:
        """int32 [V]."""
        return self._buffer("realloc_slots")

    @property
    def touched(self) -> Tensor:
        """int64 [R]."""
        return self._buffer("realloc_touched")

    @property
    def capacity(self) -> int:
        """Rows that it has room for."""
        return self.parameter.shape[0]

    @property
    def held(self) -> int:
        """Rows held now."""
        return int((self.touched >= 0).sum())

    def slots_of(self, ids: Tensor) -> Tensor:
        """The slot of each id, int32 of the same shape; -1 where it has none."""
        return self.slots.index_select(0, ids.reshape(-1)).view(ids.shape)

    def places(self) -> Tensor:
        """Sorted int64 ids that hold a row."""
        return (self.slots >= 0).nonzero().flatten()

    def free(self) -> Tensor:
        """Slots that hold nothing, ascending."""
        return (self.touched < 0).nonzero().flatten()

    def idle(self, step: int) -> Tensor:
        """Ids whose row took no part in ``step``: the one touched longest ago first, the lower slot of two."""
        ids = self.places()
        slots = self.slots[ids].long()
        order = slots.argsort()
        order = order[self.touched[slots[order]].argsort(stable=True)]
        return ids[order[self.touched[slots[order]] < step]]

    # which ids the rows belong to -------------------------------------------------------------------------------

    def stamp(self) -> int:
        """Digest of the slots, 63 bits."""
        return digest([self.slots])

    def restamp(self) -> None:
        """The rows belong to the ids as they are now."""
        self._stamp = self.stamp()
        self._buffer("realloc_stamp").fill_(self._stamp)
        self._see()

    def _see(self) -> None:
        self._seen = self._buffer("realloc_stamp")
        self._version = -1 if self._seen.is_inference() else self._seen._version

    def sure(self) -> None:
        """Compare the stamp, where someone wrote to it.

        Raises:
            StateError: the ids are another model's, or a move was cut short.
        """
        found = self._buffer("realloc_stamp")
        if found is not self._seen or (self._version >= 0 and found._version != self._version):
            if self._stamp == UNDER_WAY or int(found) != self._stamp:
                raise StateError(APART)
            self._see()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_seen": None}  # a copy has buffers of its own, and looks at them first

    # writing ----------------------------------------------------------------------------------------------------

    def touch(self, slots: Tensor, step: int) -> None:
        """These rows take part in a step."""
        self.touched[slots.long()] = step

    @torch.no_grad()
    def move(
        self, released: Tensor, acquired: Tensor, step: int, optimizer: torch.optim.Optimizer | None, fresh: Fresh
    ) -> None:
        """Give rows to ids. Called with what the ledger has checked; followers have no ``optimizer``.

        Args:
            released: int64 ids whose rows go back to the table; their moments and gradients are dropped.
            acquired: int64 ids that get a row: the table's values, no gradient, the state of a ``fresh`` optimizer.
            step: in which the new ones take part.
        """
        self._stamp = UNDER_WAY
        self._buffer("realloc_stamp").fill_(UNDER_WAY)
        self._write_back(released)
        gone = self.slots[released].long()
        self.slots[released] = -1
        self.touched[gone] = -1
        come = self.free()[: acquired.numel()]
        changed = torch.cat([gone, come])
        parameter = self.parameter
        parameter[come] = self.table[acquired]
        if parameter.grad is not None:
            parameter.grad[changed] = 0.0
        if optimizer is not None:
            for key, tensor in slotwise(optimizer, parameter).items():
                tensor[changed] = fresh.get(key, 0.0)
        self.slots[acquired] = come.to(self.slots.dtype)
        self.touched[come] = step
        self.restamp()

    def _write_back(self, ids: Tensor) -> None:
        if ids.numel():  # else the table's version would rise for nothing
            self.table[ids] = self.parameter[self.slots[ids].long()]

    @torch.no_grad()
    def whole(self) -> Tensor:
        """The table with the held rows in it, ``[V, d]``.

        They are written into it while they train. A frozen table is left alone: whoever keeps what lies above it
        watches it for changes, and gets a copy here.
        """
        ids = self.places()
        if self.parameter.requires_grad:
            self._write_back(ids)
        elif not torch.equal(self.table[ids], self.parameter[self.slots[ids].long()]):
            return self.table.detach().index_copy(0, ids, self.parameter[self.slots[ids].long()])
        return self.table.detach()

    @torch.no_grad()
    def reread(self) -> None:
        """The held rows take the table's values: a plain model's state was loaded into it."""
        ids = self.places()
        self.parameter[self.slots[ids].long()] = self.table[ids]


# on and off -------------------------------------------------------------------------------------------------------


def put_in(module: nn.Embedding, name: str, rows: int) -> RowPool:
    """Let a plain embedding train in a pool, in place. Its parameter stays the same object, with rows for values.

    So it keeps its place in the optimizer, and in lists that a user has taken of the parameters.
    """
    parameter = module._parameters["weight"]
    assert parameter is not None
    table = nn.Parameter(parameter.data, requires_grad=False)
    parameter.grad = None
    parameter.data = table.data.new_zeros(rows, module.embedding_dim)
    module._parameters["weight"], module._parameters[KEY] = table, parameter
    device = table.device
    numbers = [FORMAT, *[0] * (len(FIELDS) - 1)]
    buffers = (
        torch.full((module.num_embeddings,), -1, dtype=torch.int32, device=device),
        torch.full((rows,), -1, dtype=torch.int64, device=device),
        torch.tensor(numbers, dtype=torch.int64, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )
    for key, buffer in zip(BUFFERS, buffers, strict=True):
        module.register_buffer(key, buffer)
    pool = RowPool(module, name)
    module.__class__ = RowEmbedding
    module.__dict__["realloc_site"] = pool.site
    pool.restamp()
    return pool


@torch.no_grad()
def take_out(pool: RowPool, optimizer: torch.optim.Optimizer | None, fresh: Fresh) -> None:
    """Give the plain embedding back: the same parameter, with the trained table for values, and its state by id."""
    module, parameter, table = pool.module, pool.parameter, pool.table
    ids = pool.places()
    slots = pool.slots[ids].long()
    pool._write_back(ids)
    if optimizer is not None:
        for key, tensor in slotwise(optimizer, parameter).items():
            dense = torch.full_like(table, fresh.get(key, 0.0), dtype=tensor.dtype)
            dense[ids] = tensor[slots]
            optimizer.state[parameter][key] = dense
    gradient = None
    if parameter.grad is not None:
        gradient = torch.zeros_like(table).index_copy_(0, ids, parameter.grad[slots])
    parameter.grad = None
    parameter.data = table.data
    parameter.grad = gradient
    del module._parameters[KEY]
    module._parameters["weight"] = parameter
    for name in BUFFERS:
        del module._buffers[name]
        module._non_persistent_buffers_set.discard(name)
    del module.__dict__["realloc_site"]
    module.__class__ = nn.Embedding


def pools_of(root: nn.Module) -> tuple[RowPool, ...]:
    """The pools of rows in a model, in the order of its modules."""
    sites = [module.realloc_site for module in root.modules() if isinstance(module, RowEmbedding)]
    return tuple(site.pool for site in sites if isinstance(site.pool, RowPool))


# loading ----------------------------------------------------------------------------------------------------------


def check_rows(pool: RowPool, state: dict[str, Tensor], prefix: str) -> bool:
    """Refuse rows from outside that do not fit; called before anything is copied.

    Returns:
        Whether the state has a plain table and says nothing of rows: then ids keep theirs, with the table's values.

    Raises:
        RecordError: a part is missing, of another shape or dtype, or the slots do not fit together.
    """
    keys = (KEY, *BUFFERS)
    there = [key for key in keys if prefix + key in state]
    if not there:
        return prefix + "weight" in state
    missing = next((key for key in keys if key not in there), None)
    if missing is not None:
        raise RecordError(f"{prefix}{missing} is missing: rows never travel without their ids; load the whole state")
    for key in keys:
        found, mine = state[prefix + key], pool.parameter if key == KEY else pool._buffer(key)
        if found.shape != mine.shape or (key != KEY and found.dtype != mine.dtype):
            raise RecordError(
                f"{prefix}{key}: {tuple(found.shape)} {found.dtype} in the state, {tuple(mine.shape)} {mine.dtype} "
                "here; attach with the same number of rows, or load the state's plain part: its weights hold all rows"
            )
    slots, touched, counts, stamp = (state[prefix + key].cpu() for key in BUFFERS)
    if int(counts[0]) != FORMAT or bool((counts < 0).any()):
        raise RecordError(f"{prefix}realloc_counts: not of this version of realloc (format {FORMAT})")
    held = slots[slots >= 0].sort().values
    if bool((slots < -1).any()) or not torch.equal(held.long(), (touched >= 0).nonzero().flatten()):
        raise RecordError(
            f"{prefix}realloc_slots: two ids share a slot, or one lies outside the pool of {len(touched)}"
        )
    if digest([slots]) != int(stamp):
        raise RecordError(f"{prefix}realloc_stamp: {DAMAGED}")
    return False


def loaded(pool: RowPool, plain: bool) -> None:
    """After a load: rows and ids came together. Gradients of other ids are dropped: they are those of other rows."""
    before, pool._stamp = pool._stamp, pool.stamp()
    if pool._stamp != before:
        pool.parameter.grad = None
    if plain:
        pool.reread()
    pool._see()
