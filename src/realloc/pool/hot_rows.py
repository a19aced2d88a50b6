"""Rows that ids own: the sketch takes in a step, and a move gives rows, with their optimizer state. docs/adr/0023."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.kernels.digest import digest
from realloc.kernels.seek import Noted
from realloc.kernels.sketch import Entries, Sketch, insert
from realloc.nn.rows import FIELDS, FLOATS, FORMAT, SKETCH, Rows
from realloc.pool.book import Book
from realloc.pool.state import slotwise
from realloc.rng import stream
from realloc.scores.row_score import RowScore, RowStep

# what points somewhere starts anew with a row; all other state of a row is a scale, and goes with it
FIRST_MOMENTS: Final = frozenset({"exp_avg", "momentum_buffer", "grad_avg", "prev"})
Named = list[tuple[int, Tensor]]  # ids by table


@final
class HotRows:
    """The rows of one store, as training moves them."""

    def __init__(self, name: str, store: Rows, fresh: Mapping[str, float] | None = None) -> None:
        self.name, self.store = name, store
        self.book = Book(store, "book", FIELDS, FORMAT)
        self.fresh = fresh or {}  # what a fresh optimizer writes into the state of a row, by key
        self.directions = directions_of(store.dim, store.directions)

    # counts -----------------------------------------------------------------------------------------------------

    def begin(self, seed: int) -> None:
        """Start to count, where no run has begun."""
        if not self.book.read("begun"):
            for name in ("steps", "seen", "promoted", "demoted", "moves"):
                self.book.write(name, 0)
            self.book.write("seed", seed)
            self.book.write("begun", 1)

    @property
    def free(self) -> int:
        """Rows that nobody owns."""
        return self.store.split.own - self.store.owners

    def owned_by(self, table: int) -> Tensor:
        """Ids of one table that own a row, int64, ascending, on the CPU."""
        store = self.store
        mine = (store.buffer("owned") >= 0) & (store.buffer("tables") == table)
        return store.buffer("keys")[mine].sort().values.cpu()

    @property
    def stamp(self) -> int:
        """Which ids own which rows: digest, 63 bits."""
        return digest([self.store.buffer(name) for name in ("keys", "tables", "owned")])

    @property
    def whole_stamp(self) -> int:
        """Digest of all that a decision reads."""
        return digest([buffer for buffer in self.store.buffers() if buffer.numel()])

    # the sketch -------------------------------------------------------------------------------------------------

    def take(self, noted: Sequence[Noted], numbers: Tensor, ranks: int, score: RowScore) -> None:
        """Take in one step.

        All of it is computed on the CPU, so that ranks with several devices write the same bits.

        Args:
            noted: by table, the ids whose gradient came, each once.
            numbers: all that was noted of them, ``[n, 2]`` or ``[n, 2 + dim]``, finite.
            ranks: how many of them it is summed over; gradients are those of the mean loss.
            score: what it adds to each.
        """
        store = self.store
        ids, tables = noted[0].ids, torch.full_like(noted[0].ids, noted[0].table, dtype=torch.int32)
        if len(noted) > 1:
            ids = torch.cat([one.ids for one in noted])
            tables = torch.cat([torch.full_like(one.ids, one.table, dtype=torch.int32) for one in noted])
        whole = numbers if ranks == 1 else numbers / ranks
        step = RowStep(numbers[:, 0], whole[:, 1], whole[:, 2:])
        gains = score.gained(step)
        if score.needs_directions:
            sums = (step.sums * step.scale).float() @ self.directions
        else:
            sums = torch.zeros(len(ids), store.directions, dtype=torch.float32)
        host = {name: store.buffer(name).cpu() for name in SKETCH}
        insert(Sketch(**host), Entries(ids, tables, gains, sums), len(store.enrolled))
        self._put_back(host)
        self.book.add("seen", round(step.occurrences))

    def _put_back(self, host: dict[str, Tensor]) -> None:
        for name, tensor in host.items():
            mine = self.store.buffer(name)
            if mine is not tensor:
                mine.copy_(tensor)

    def decay(self, factor: float) -> None:
        """Let what was noted fade."""
        for name in FLOATS:
            self.store.buffer(name).mul_(factor)

    # a move -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def move(
        self,
        released: Named,
        acquired: Named,
        optimizer: torch.optim.Optimizer,
        migrate: bool = True,
        copies: Sequence[Rows] = (),
    ) -> dict[int, float]:
        """Give rows to ids. Called with what the ledger has checked.

        Args:
            released: by table, int64 ids whose rows merge into their shared ones.
            acquired: by table, int64 ids that the sketch knows and that start from theirs.
            optimizer: whose state of the rows goes with them.
            migrate: whether it is so; else what is released is dropped and what is acquired starts at zero.
            copies: averaged stores, whose rows move as these do.

        Returns:
            The jump, by table: by how much what an id reads changed at most, as a norm: of ids that gave a row or got
            one, and of those that read a shared row into which another was merged.
        """
        out, come = self._slots(released), self._slots(acquired)
        parameter, store = self.store.weight, self.store
        rows = store.buffer("owned")[out.slots].long()
        before = parameter.detach()[torch.cat([rows, out.shared, come.shared])].clone()
        moving = [("", parameter.detach()), *(("", copy.weight.detach()) for copy in copies)]
        moving += slotwise(optimizer, parameter).items()
        starts = [tensor[come.shared].clone() for _, tensor in moving]
        self._account(come, -1)  # whoever leaves has no say in what a shared row becomes
        weights = store.buffer("shared_scores"), self._mine("scores", out.slots)
        for name, tensor in moving:
            if migrate and name not in FIRST_MOMENTS:
                _merge(tensor, rows, out.shared, *weights)
            tensor[rows] = self.fresh.get(name, 0.0)
        self._account(out, 1)
        store.buffer("owned")[out.slots] = -1
        given = self._free_rows()[: len(come.slots)]
        for (name, tensor), start in zip(moving, starts, strict=True):
            tensor[given] = start if migrate and name not in FIRST_MOMENTS else self.fresh.get(name, 0.0)
        store.buffer("owned")[come.slots] = given.to(torch.int32)
        self._still(torch.cat([rows, given]))
        for copy in copies:
            for name in SKETCH:
                copy.buffer(name).copy_(store.buffer(name))
        change = (parameter.detach()[torch.cat([out.shared, out.shared, given])] - before).norm(dim=1)
        tables = torch.cat([out.tables, out.tables, come.tables])
        return {table: max(change[tables == table].tolist(), default=0.0) for table, _ in [*released, *acquired]}

    def _slots(self, named: Named) -> _Places:
        device = self.store.weight.device
        none = torch.zeros(0, dtype=torch.int64, device=device)
        slots, shared, tables = [none], [none], [none]
        for table, ids in named:
            here = ids.to(device)
            slots.append(self.store.places(table, here))
            shared.append(self.store.hashed(table, here)[0])
            tables.append(torch.full_like(here, table))
        return _Places(torch.cat(slots), torch.cat(shared), torch.cat(tables))

    def _mine(self, name: str, slots: Tensor) -> Tensor:
        """What ids have gained themselves since the sketch knows them, on the CPU; scores without what is inherited."""
        found = self.store.buffer(name)[slots].cpu()
        return (found - self.store.buffer("inherited")[slots].cpu()).clamp(min=0) if name == "scores" else found

    def _account(self, ids: _Places, sign: int) -> None:
        """What ids have added to their shared rows comes to them with the ids, and leaves with them."""
        host = {name: self.store.buffer(name).cpu() for name in ("shared_scores", "shared_sums")}
        for name, tensor in host.items():  # on the CPU floats are added in order
            tensor.index_add_(0, ids.shared.cpu(), sign * self._mine(name.removeprefix("shared_"), ids.slots))
        host["shared_scores"].clamp_(min=0)
        self._put_back(host)

    def _free_rows(self) -> Tensor:
        split, owned = self.store.split, self.store.buffer("owned")
        free = torch.ones(split.rows, dtype=torch.bool, device=owned.device)
        free[: split.shared] = False
        free[owned[owned >= 0].long()] = False
        return free.nonzero().flatten()

    def _still(self, rows: Tensor) -> None:
        """A gradient that is left is of the tenant before."""
        gradient = self.store.weight.grad
        if gradient is not None and not gradient.is_sparse:
            gradient[rows] = 0


@final
class _Places:
    """Ids by where they are: slots of the sketch, shared rows, tables; int64 [n] each."""

    def __init__(self, slots: Tensor, shared: Tensor, tables: Tensor) -> None:
        self.slots, self.shared, self.tables = slots, shared, tables


def _merge(tensor: Tensor, rows: Tensor, shared: Tensor, standing: Tensor, scores: Tensor) -> None:
    """Bring rows back into their shared ones: the mean of all that meet in one, weighted by score.

    A shared row that nobody has scored weighs nothing, as an id without a score does; where neither has one, the shared
    row stays.
    """
    targets, where = torch.unique(shared, return_inverse=True)
    if not len(targets):
        return
    where, weights, standing = where.cpu(), scores.double().cpu(), standing[targets].double().cpu()
    here, gone = tensor[targets].double().cpu(), tensor[rows].double().cpu()  # on the CPU: floats are added in order
    total = standing.index_add(0, where, weights).unsqueeze(1)
    parts = (here * standing.unsqueeze(1)).index_add(0, where, gone * weights.unsqueeze(1))
    tensor[targets] = torch.where(total > 0, parts / total, here).to(tensor)


def owners_of(store: Rows) -> list[tuple[int, int, int]]:
    """Who owns what: table, id and row of each that owns one, ascending."""
    slots = (store.buffer("owned") >= 0).nonzero().flatten()
    parts = (store.buffer(name)[slots].tolist() for name in ("tables", "keys", "owned"))
    return sorted(zip(*parts, strict=True))


def directions_of(dim: int, count: int) -> Tensor:
    """float32 ``[dim, count]``: random directions that keep norms on average; all of them if count is dim.

    They follow from the numbers alone, so that nothing has to be saved.

    >>> directions_of(3, 3)
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    if count == dim:
        return torch.eye(dim, dtype=torch.float32)
    draw = stream(0, "directions of rows", step=dim)
    return torch.randn(dim, count, generator=draw, dtype=torch.float32) / math.sqrt(max(1, count))


def group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    """The optimizer's group that has the parameter."""
    return next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)
