"""Rows: the parameter that embeddings share, which of its rows an id reads, and the sketch that knows the hot ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, cast, final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError, RecordError
from realloc.kernels.seek import Listener, hashed, heard, owned_rows
from realloc.kernels.sketch import WAYS
from realloc.nn.budget import COUNTS, Costs, bytes_of, repriced, split_of
from realloc.nn.checks import whole

FORMAT: Final = 1
FIELDS: Final = ("format", "begun", "seed", "steps", "seen", "promoted", "demoted", "moves")
SKETCH: Final = ("keys", "tables", "owned", "scores", "inherited", "sums", "shared_scores", "shared_sums")
BUFFERS: Final = (*SKETCH, "book")
FLOATS: Final = SKETCH[3:]  # float32 whatever the weight is
assert len(FIELDS) == COUNTS


@final
class Rows(nn.Module):
    """Rows for one or several embeddings, within one budget of bytes.

    ``weight [S, dim]``: first H shared rows, to which ids are hashed, then S - H rows that hot ids own. The optimizer
    has state for S rows only. Which ids are hot is written in a sketch of 4-way buckets beside it; it changes under
    `realloc.attach(model, optimizer, realloc.methods.rows())` only. Without that this is static hashing.

    Args:
        dim: numbers in a row.
        rows: the budget. An integer: the bytes of so many rows with their moments; "10%": of the bytes of ``num_ids``
            such rows; "200kB": so many bytes. Weights, moments and the sketch are all paid from it; transient gradients
            are not.
        num_ids: ids of all tables together, None where unknown.
        own: part of the rows that ids may own, 0 <= own < 1. At 0 there is no sketch, and the same bytes hash.
        candidates: slots of the sketch for each such row, 1 or more.
        directions: numbers by which a slot remembers the direction of its gradient: 0, or up to ``dim``. Only the
            score "conflict" needs them; 8 tell directions well enough, ``dim`` are exact.
        moments: numbers that the optimizer keeps for each weight (Adam 2, momentum 1, plain SGD 0).
        sparse: gradients are sparse tensors, for `torch.optim.SparseAdam` and SGD.

    Shapes: ids of any shape ``[...]``, int64 or int32, 0 and more; rows ``[..., dim]``.

    Raises:
        ConfigError: a number out of range, or a budget that buys no row, or not one shared row for each table.

    Source: the layout of CAFE (2312.03256), hot ids with rows of their own beside hashed ones. Where we differ: the
    budget counts the optimizer's state, the sketch is in ``state_dict()``, tables share rows.

    >>> store = Rows(16, rows=100)
    >>> store.split.shared, store.split.own, store.budget, store.held + store.parked
    (44, 43, 19200, 19200)
    """

    weight: nn.Parameter
    kind: ClassVar[str] = "hot rows"

    def __init__(
        self,
        dim: int,
        rows: int | str,
        *,
        num_ids: int | None = None,
        own: float = 0.5,
        candidates: float = 2.0,
        directions: int = 0,
        moments: int = 2,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (("dim", dim, 1), ("directions", directions, 0), ("moments", moments, 0)):
            whole(name, value, least)
        if num_ids is not None:
            whole("num_ids", num_ids, 1)
        if directions > dim:
            raise ConfigError(f"directions is {directions}, and a row has {dim} numbers; {dim} are exact already")
        if not 0 <= own < 1:
            raise ConfigError(f"own is {own!r}; it is the part of the rows that ids may own: 0 <= own < 1")
        if not 1 <= candidates <= 1024:
            raise ConfigError(f"candidates is {candidates!r}; it is the slots of the sketch for each row: 1 or more")
        costs = Costs(dim, torch.get_default_dtype().itemsize, moments, directions)
        self.split = split_of(bytes_of(rows, costs, num_ids), costs, own, candidates)
        self.dim, self.directions, self.sparse = dim, directions, sparse
        self.enrolled: list[int | None] = []  # by table: its ids, where known
        self.hear: Listener | None = None  # told of what training looks up
        slots, shared = self.split.buckets * WAYS, self.split.shared
        self.weight = nn.Parameter(torch.empty(self.split.rows, dim))
        self.register_buffer("keys", torch.full((slots,), -1))
        self.register_buffer("tables", torch.zeros(slots, dtype=torch.int32))
        self.register_buffer("owned", torch.full((slots,), -1, dtype=torch.int32))
        self.register_buffer("scores", torch.zeros(slots, dtype=torch.float32))
        self.register_buffer("inherited", torch.zeros(slots, dtype=torch.float32))
        self.register_buffer("sums", torch.zeros(slots, directions, dtype=torch.float32))
        self.register_buffer("shared_scores", torch.zeros(shared, dtype=torch.float32))
        self.register_buffer("shared_sums", torch.zeros(shared, directions, dtype=torch.float32))
        self.register_buffer("book", torch.tensor([FORMAT, *[0] * (COUNTS - 1)]))
        self.reset_parameters()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"hear": None}  # a copy is another model's

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Rows:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in FLOATS:  # `model.half()` is meant for weights
            self._buffers[name] = self.buffer(name).float()
        self.split = repriced(self.split, self.weight.dtype.itemsize)
        return self

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        split = self.split
        return f"{split.shared:,} shared rows, {split.own:,} to own, dim={self.dim}, budget={split.budget:,} bytes"

    def reset_parameters(self) -> None:
        """Shared rows as `nn.Embedding` starts them, rows without an owner zero.

        Raises:
            ConfigError: ids own rows; they would be lost.
        """
        if self.owners:
            raise ConfigError(f"{self.owners} ids own rows, which a reset would lose; build the layer anew")
        with torch.no_grad():
            nn.init.normal_(self.weight[: self.split.shared])
            nn.init.zeros_(self.weight[self.split.shared :])

    def buffer(self, name: str) -> Tensor:
        """One of the buffers."""
        found = self._buffers[name]
        assert found is not None
        return found

    # numbers ----------------------------------------------------------------------------------------------------

    @property
    def owners(self) -> int:
        """Ids that own a row now."""
        return int((self.buffer("owned") >= 0).sum())

    @property
    def budget(self) -> int:
        """Bytes, constant."""
        return self.split.budget

    @property
    def held(self) -> int:
        """Bytes of shared rows, owned rows, their moments, the sketch and the counts."""
        return self.split.held(self.owners)

    @property
    def parked(self) -> int:
        """What is left of the budget: rows without an owner, and the rest that buys no row."""
        return self.budget - self.held

    # ids --------------------------------------------------------------------------------------------------------

    def enroll(self, num_ids: int | None) -> int:
        """Take in a table; returns its number, by which its ids are told from those of others.

        Raises:
            ConfigError: there are fewer shared rows than tables.
        """
        if len(self.enrolled) >= self.split.shared:
            raise ConfigError(
                f"{len(self.enrolled) + 1} tables are to share {self.split.shared:,} hashed rows, fewer than one for "
                "each; raise rows, or lower own"
            )
        self.enrolled.append(num_ids)
        return len(self.enrolled) - 1

    def check_tables(self) -> None:
        """Refuse a row for each id and more, where all tables that share the rows say how many ids they have.

        Raises:
            ConfigError: nothing is to be shared.
        """
        known = [ids for ids in self.enrolled if ids is not None]
        if known and len(known) == len(self.enrolled) and sum(known) <= self.split.rows:
            raise ConfigError(
                f"the tables that share {self.split.rows:,} rows have {sum(known):,} ids together: nothing is to be "
                "shared; take torch.nn's own layers, or lower rows"
            )

    def hashed(self, table: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The shared row and the bucket of int64 ids ``[n]``, salted by table; the bucket is 0 without a sketch."""
        return hashed(ids, table, self.split.shared, self.split.buckets)

    def places(self, table: int, ids: Tensor) -> Tensor:
        """The slot of the sketch of int64 ids ``[n]``, -1 where it does not know them."""
        if not self.split.buckets:
            return ids.new_full(ids.shape, -1)
        slots = self.hashed(table, ids)[1].unsqueeze(1) * WAYS + torch.arange(WAYS, device=ids.device)
        found = (self.buffer("keys")[slots] == ids.unsqueeze(1)) & (self.buffer("tables")[slots] == table)
        return torch.where(found, slots, -1).amax(1)

    def rows_of(self, table: int, ids: Tensor) -> Tensor:
        """The row of ``weight`` that each id reads, int64 ``[...]``: its own, else its shared one.

        Raises:
            ConfigError: ids that are negative, or no integers of 32 or 64 bits.
        """
        known = self.buffer("keys"), self.buffer("tables"), self.buffer("owned")
        return owned_rows(ids, *known, table, self.split.shared)

    def look_up(self, table: int, ids: Tensor, padding: int | None = None) -> Tensor:
        """``[..., dim]`` for ids ``[...]``; ``padding`` reads zeros and never trains."""
        rows = self.rows_of(table, ids)
        if padding is None:
            return self._tell(table, ids, nn.functional.embedding(rows, self.weight, sparse=self.sparse))
        padded = ids == padding
        if self.sparse:  # else a sparse optimizer steps the row that the padding id shares
            found = self.weight.new_zeros(*ids.shape, self.dim)
            found[~padded] = self._tell(
                table, ids[~padded], nn.functional.embedding(rows[~padded], self.weight, sparse=True)
            )
            return found
        found = nn.functional.embedding(rows, self.weight)
        return self._tell(table, torch.where(padded, -1, ids), found).masked_fill(padded.unsqueeze(-1), 0)

    def _tell(self, table: int, ids: Tensor, found: Tensor) -> Tensor:
        """Let who listens know of the gradient of what was found."""
        hear = self.listener
        if hear is None or not found.requires_grad:
            return found
        if torch.compiler.is_compiling():
            return cast("Tensor", heard(found, ids, hear.number, table))
        hear(table, ids, found)
        return found

    @property
    def listener(self) -> Listener | None:
        """Who is to be told of a look-up that is made now; nobody where `torch.func` has put in weights of its own."""
        hear = self.hear
        if hear is None or not isinstance(self.weight, nn.Parameter):
            return None
        return hear if torch.compiler.is_compiling() or hear.listens else None

    # loading ----------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        found = {name: state_dict.get(prefix + name) for name in ("weight", *BUFFERS)}
        lacking = [name for name, tensor in found.items() if not isinstance(tensor, Tensor)]
        if not lacking:
            self._check({name: tensor for name, tensor in found.items() if tensor is not None}, prefix)
        elif len(lacking) < len(found) and (why := "ids own rows here" if self.owners else self._owned_in(found)):
            raise RecordError(
                f"{prefix}{lacking[0]} is not in the state, and {why}: values without their places are those of other "
                "ids; load a whole state"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _owned_in(self, found: Mapping[str, Tensor | None]) -> str:
        """What a part of a state says of rows that ids own: the slots name them; without slots, they are not zero."""
        weight, owned, shared = found["weight"], found["owned"], self.split.shared
        if isinstance(owned, Tensor):
            return "ids own rows in it" if bool((owned >= 0).any()) else ""
        if not isinstance(weight, Tensor) or not bool(weight[shared:].any()):
            return ""
        return f"ids may own rows in it, since weight[{shared}:] is not zero (if none does, zero that first)"

    def _check(self, found: Mapping[str, Tensor], prefix: str) -> None:
        """Refuse a state that no run writes, before anything of it is copied."""
        for name, tensor in found.items():
            mine = self.weight if name == "weight" else self.buffer(name)
            if tensor.shape != mine.shape or (name != "weight" and tensor.dtype != mine.dtype):
                raise RecordError(
                    f"{prefix}{name} is {tensor.dtype} {tuple(tensor.shape)}, and this store has {mine.dtype} "
                    f"{tuple(mine.shape)}; build the layer with the same dim, rows, own, candidates and directions"
                )
        if int(found["book"][0]) != FORMAT:
            raise RecordError(f"{prefix}book is of format {int(found['book'][0])}, this is {FORMAT}; update realloc")
        keys, tables, owned = found["keys"].cpu(), found["tables"].cpu().long(), found["owned"].cpu()
        rows = owned[owned >= 0]
        sound = torch.unique(rows).numel() == rows.numel() and bool((keys[owned >= 0] >= 0).all())
        sound &= not rows.numel() or self.split.shared <= int(rows.min()) <= int(rows.max()) < self.split.rows
        for table in range(len(self.enrolled)):
            mine = (keys >= 0) & (tables == table)
            sound &= torch.equal(self.hashed(table, keys[mine])[1], mine.nonzero().flatten() // WAYS)
            sound &= torch.unique(keys[mine]).numel() == int(mine.sum())
        known = (tables >= 0) & (tables < max(1, len(self.enrolled)))
        sound &= bool(known[keys >= 0].all())
        sound &= all(bool(found[name].isfinite().all()) for name in FLOATS)
        sound &= all(bool((found[name] >= 0).all()) for name in ("scores", "inherited", "shared_scores"))
        sound &= bool((found["book"][3:] >= 0).all())
        if not sound:
            raise RecordError(f"{prefix}keys and {prefix}owned hold what no run writes: the state is damaged")
