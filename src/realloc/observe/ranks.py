"""The ranks of a distributed run, as a decision needs them: average, agree, and take rank 0's plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from realloc.errors import StateError
from realloc.plan import Change, Plan
from realloc.pool.found import wrapper_of


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

    @property
    def device(self) -> str:
        """Where tensors must be to be sent: the CPU, or the accelerator where the group's backend takes no other."""
        return device_of(torch.distributed.get_backend(self.group)) if self.several else "cpu"

    def sum(self, tensor: Tensor) -> Tensor:
        """Add over ranks; the same bits on each."""
        return self._reduced(tensor, torch.distributed.ReduceOp.SUM) if self.several else tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Average over ranks; the same bits on each."""
        if not self.several:
            return tensor
        return self.sum(tensor) / self.count

    def of_first(self, numbers: list[int]) -> list[int]:
        """Rank 0's numbers, as many as these, on every rank."""
        if not self.several:
            return numbers
        return self._of_first(torch.tensor(numbers, dtype=torch.int64)).tolist()

    def rows(self, tensor: Tensor) -> Tensor:
        """Rows ``[b, w]`` of all ranks, in the order of the ranks; narrower ones end in zeros."""
        if not self.several:
            return tensor
        count, width = self.largest([len(tensor), tensor.shape[1]])
        mine = tensor.new_zeros(count, width)
        mine[: len(tensor), : tensor.shape[1]] = tensor
        sizes = self._gathered(torch.tensor([len(tensor)]))
        return torch.cat([rows[: int(size)] for rows, size in zip(self._gathered(mine), sizes, strict=True)])

    def largest(self, numbers: list[int]) -> list[int]:
        """Elementwise maximum over ranks: what took part on any rank took part."""
        if not self.several:
            return numbers
        return self._reduced(torch.tensor(numbers, dtype=torch.int64), torch.distributed.ReduceOp.MAX).tolist()

    def union(self, ids: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of all ranks, int64, ascending, each once, and how often each came in all. Called by all, or by none."""
        if not self.several:
            return ids, counts
        whole = self.rows(torch.stack([ids.cpu(), counts.cpu()], 1).long())
        found, places = torch.unique(whole[:, 0], return_inverse=True)
        totals = torch.zeros_like(found).index_add(0, places, whole[:, 1])
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

    # what is sent, through the device that the group can send from -----------------------------------------------

    def _reduced(self, tensor: Tensor, how: Any) -> Tensor:
        total = tensor.to(self.device, copy=True)
        torch.distributed.all_reduce(total, op=how, group=self.group)
        return total.to(tensor.device)

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        """One tensor of each rank, all of one shape."""
        mine = tensor.to(self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        torch.distributed.all_gather(everyone, mine, group=self.group)
        return [one.to(tensor.device) for one in everyone]

    def _of_first(self, tensor: Tensor) -> Tensor:
        sent = tensor.to(self.device, copy=True)
        torch.distributed.broadcast(sent, group_src=0, group=self.group)
        return sent.to(tensor.device)

    def _broadcast(self, plan: Plan) -> Plan:
        counts = [int(plan.skipped is not None)]
        counts += [n for c in plan.changes for n in (c.released.numel(), c.acquired.numel())]
        (size,) = self.of_first([len(counts)])
        mine = self.of_first(counts if len(counts) == size else [0] * size)
        if mine[0]:
            return Plan(plan.step, (), skipped=plan.skipped or "rank 0 found scores that are not finite")
        places = torch.cat([t.cpu() for c in plan.changes for t in (c.released, c.acquired)] or [torch.empty(0).long()])
        total = sum(mine[1:])
        payload = self._of_first(places if places.numel() == total else torch.empty(total, dtype=torch.int64))
        pieces = iter(torch.split(payload, mine[1:]))
        changes = tuple(
            _with(c, next(pieces).to(c.released.device), next(pieces).to(c.acquired.device)) for c in plan.changes
        )
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


def device_of(backend: str) -> str:
    """The kind of device that a backend of `torch.distributed` sends from; the CPU, where it does.

    >>> device_of("gloo"), device_of("nccl"), device_of("cuda:nccl"), device_of("cpu:gloo,cuda:nccl")
    ('cpu', 'cuda', 'cuda', 'cpu')
    """
    pairs = [pair.split(":") for pair in backend.split(",")]
    known = torch.distributed.Backend.backend_capability
    kinds = [kind for pair in pairs for kind in (pair[:1] if len(pair) > 1 else known.get(pair[0], ["cpu"]))]
    return "cpu" if "cpu" in kinds or not kinds else kinds[0]


def ranks_of(model: nn.Module) -> Ranks:
    """The ranks of a model: those of its DDP wrapper, or one process."""
    return Ranks(getattr(wrapper_of(model), "process_group", None))


def refuse_apart(model: nn.Module, name: str) -> None:
    """Refuse what moves in several processes of which a model shows only one: they could not decide alike.

    Raises:
        StateError: no DDP is around it.
    """
    count = world_ranks().count
    if count > 1 and ranks_of(model) == Ranks():
        raise StateError(
            f"{name} moves, and {count} processes train: attach() got a {type(model).__name__} without "
            "DistributedDataParallel around it, so the ranks could not decide alike; attach() the model that it wraps "
            "(prepare() comes before, where parameters are replaced); for models that are to train apart, one with a "
            "group of its own: DistributedDataParallel(model, process_group=torch.distributed.new_group([rank])). FSDP "
            "is not supported"
        )


def world_ranks() -> Ranks:
    """The ranks of this process's default group, where `torch.distributed` runs: nothing there is wrapped by DDP."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Ranks(torch.distributed.group.WORLD if there else None)
