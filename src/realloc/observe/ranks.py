"""The ranks of a distributed run, as a decision needs them: average, agree, and take rank 0's plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from realloc.errors import StateError
from realloc.plan import Change, Plan


@final
@dataclass(frozen=True)
class Ranks:
    """A process group, or a single process (``group=None``)."""

    group: Any = None

    @property
    def several(self) -> bool:
        """Whether there is anyone to talk to."""
        return self.group is not None and torch.distributed.get_world_size(self.group) > 1

    @property
    def count(self) -> int:
        """How many there are."""
        return torch.distributed.get_world_size(self.group) if self.several else 1

    @property
    def number(self) -> int:
        """Which one this is, from 0."""
        return torch.distributed.get_rank(self.group) if self.several else 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add over ranks; the same bits on each."""
        if not self.several:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total, group=self.group)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Average over ranks; the same bits on each."""
        if not self.several:
            return tensor
        return self.sum(tensor) / self.count

    def of_first(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, as many as these, on every rank."""
        if not self.several:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64)
        torch.distributed.broadcast(tensor, 0, group=self.group)
        return tensor.tolist()

    def rows(self, tensor: Tensor) -> Tensor:
        """Rows ``[b, w]`` of all ranks, in the order of the ranks; narrower ones end in zeros."""
        if not self.several:
            return tensor
        count, width = self.largest([len(tensor), tensor.shape[1]])
        mine = tensor.new_zeros(count, width)
        mine[: len(tensor), : tensor.shape[1]] = tensor
        world = torch.distributed.get_world_size(self.group)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        torch.distributed.all_gather(sizes, torch.tensor([len(tensor)]), group=self.group)
        everyone = [torch.empty_like(mine) for _ in range(world)]
        torch.distributed.all_gather(everyone, mine, group=self.group)
        return torch.cat([rows[: int(size)] for rows, size in zip(everyone, sizes, strict=True)])

    def largest(self, numbers: list[int]) -> list[int]:
        """Elementwise maximum over ranks: what took part on any rank took part."""
        if not self.several:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return tensor.tolist()

    def union(self, ids: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of all ranks, int64, ascending, each once, and how often each came in all. Called by all, or by none."""
        if not self.several:
            return ids, counts
        world = torch.distributed.get_world_size(self.group)
        sizes = self.largest(
            [ids.numel() if rank == torch.distributed.get_rank(self.group) else 0 for rank in range(world)]
        )
        mine = torch.zeros(2, max(1, *sizes), dtype=torch.int64)
        mine[0, : ids.numel()], mine[1, : ids.numel()] = ids.cpu(), counts.cpu()
        everyone = [torch.empty_like(mine) for _ in range(world)]
        torch.distributed.all_gather(everyone, mine, group=self.group)
        whole = torch.cat([part[:, :size] for part, size in zip(everyone, sizes, strict=True)], 1)
        found, places = torch.unique(whole[0], return_inverse=True)
        totals = torch.zeros_like(found).index_add(0, places, whole[1])
        return found.to(ids.device), totals.to(ids.device)

    def agree(self, plan: Plan, stamp: int) -> Plan:
        """Rank 0's plan, on every rank.

        Raises:
            StateError: the ranks start from different placements, so no plan fits all of them.
        """
        if not self.several:
            return plan
        self.check_stamp(stamp, f"before the move at step {plan.step}")
        return self._broadcast(plan)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, or the only one."""
        return not self.several or torch.distributed.get_rank(self.group) == 0

    def check_stamp(self, stamp: int, when: str) -> None:
        """Refuse ranks that start from different placements.

        Raises:
            StateError: on every rank, so that none waits for another.
        """
        if not self.several:
            return
        low, high = self.largest([-stamp, stamp])
        if -low != high:
            raise StateError(
                f"ranks hold different placements {when}: "
                "use one seed on all ranks, and load the same checkpoint on each"
            )

    def _broadcast(self, plan: Plan) -> Plan:
        counts = [int(plan.skipped is not None)]
        counts += [n for c in plan.changes for n in (c.released.numel(), c.acquired.numel())]
        sites = torch.tensor([len(plan.changes), len(counts)], dtype=torch.int64)
        torch.distributed.broadcast(sites, 0, group=self.group)
        mine = (
            torch.tensor(counts, dtype=torch.int64)
            if len(counts) == int(sites[1])
            else torch.empty(int(sites[1]), dtype=torch.int64)
        )
        torch.distributed.broadcast(mine, 0, group=self.group)
        if int(mine[0]):
            return Plan(plan.step, (), skipped=plan.skipped or "rank 0 found scores that are not finite")
        places = torch.cat(
            [t for c in plan.changes for t in (c.released, c.acquired)] or [torch.empty(0, dtype=torch.int64)]
        )
        total = int(mine[1:].sum())
        payload = places if places.numel() == total else torch.empty(total, dtype=torch.int64)
        torch.distributed.broadcast(payload, 0, group=self.group)
        pieces = torch.split(payload, mine[1:].tolist())
        changes = tuple(_with(c, pieces[2 * i], pieces[2 * i + 1]) for i, c in enumerate(plan.changes))
        same = plan.skipped is None and all(
            torch.equal(new.released, mine.released) and torch.equal(new.acquired, mine.acquired)
            for new, mine in zip(changes, plan.changes, strict=True)
        )
        apart = not same if plan.writes else plan.skipped is not None  # writes were computed for the plan of this rank
        if self.largest([int(apart)])[0]:
            raise StateError(f"ranks decided differently at step {plan.step}; use one version of torch on all of them")
        return Plan(plan.step, changes, note=plan.note, writes=plan.writes)


def _with(change: Change, released: Tensor, acquired: Tensor) -> Change:
    same = torch.equal(acquired, change.acquired)
    if change.values is not None and released.numel() != change.released.numel():
        raise StateError(f"{change.site}: ranks of this process and of rank 0 are not the same; load one checkpoint")
    return Change(
        change.site, change.before, change.before - released.numel() + acquired.numel(), released, acquired,
        change.keep_threshold, change.want_threshold, change.predicted_gain, change.gradient if same else None,
        change.jump, change.values,
    )  # fmt: skip


def ranks_of(model: nn.Module) -> Ranks:
    """The ranks of a model: those of its DDP wrapper, or one process."""
    group = getattr(model, "process_group", None) if type(model).__name__ == "DistributedDataParallel" else None
    return Ranks(group)


def world_ranks() -> Ranks:
    """The ranks of this process's default group, where `torch.distributed` runs: nothing there is wrapped by DDP."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Ranks(torch.distributed.group.WORLD if there else None)
