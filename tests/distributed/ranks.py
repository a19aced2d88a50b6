"""Two gloo ranks, each in its own process, and what each of them saw."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc.handle import Handle
from realloc.methods.method import Method

Story = Callable[..., Any]
WORLD = 2


def _enter(rank: int, folder: str, stories: dict[str, tuple[Story, tuple[Any, ...]]]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120)
    )
    told = {}
    for name, (story, args) in stories.items():
        try:
            told[name] = {"end": story(rank, *args)}
        except Exception:  # shown by the test that asks for this story
            told[name] = {"error": traceback.format_exc()}
        dist.barrier()
    torch.save(told, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@final
class Ranks:
    """What several stories returned on each rank, all told by one pair of processes: starting a pair takes seconds."""

    def __init__(self, folder: Path, **stories: tuple[Story, tuple[Any, ...]]) -> None:
        torch.multiprocessing.spawn(_enter, (str(folder), stories), nprocs=WORLD)
        self._told = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]

    def of(self, story: str) -> list[Any]:
        for rank, told in enumerate(self._told):
            assert "error" not in told[story], f"rank {rank}: {told[story]['error']}"
        return [told[story]["end"] for told in self._told]


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3)).to(dtype)


def batch(step: int, part: int, dtype: torch.dtype = torch.float32, rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2 * step + part)
    x = torch.randn(rows, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x, x[:, :3].argmax(1)


def batch_of(rank: int | None, step: int) -> tuple[Tensor, Tensor]:
    """A rank's part of a step's batch in float64; of one process, None, both parts."""
    parts = [batch(step, part, torch.float64) for part in ((0, 1) if rank is None else (rank,))]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def start(
    model: nn.Module, method: Method, *, every: int = 2, total: int = 60, wrap: bool = True, seed: int = 0,
    record: str | None = None, **settings: Any,
) -> tuple[nn.Module, torch.optim.Optimizer, Handle]:  # fmt: skip
    realloc.prepare(model, method, seed=seed)
    model = DistributedDataParallel(model, **settings) if wrap else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = realloc.every(every, until=1.0, total=total)
    return model, optimizer, realloc.attach(model, optimizer, method, schedule=schedule, seed=seed, record=record)


def masks(handle: Handle) -> Tensor:
    return torch.cat([handle.mask(name).flatten() for name in handle.sites])


def dense(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in realloc.export.dense(model).named_parameters()}
