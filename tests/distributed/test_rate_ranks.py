"""Shares of learning rate on two processes: the same shares, and the training of one process with the doubled batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, net
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods
from realloc.errors import StateError

STEPS = 12


def _batch(step: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(2 * step + part)
    return torch.randn(6, 8, generator=draw, dtype=torch.float64), torch.randint(0, 3, (6,), generator=draw)


def _train(rank: int, name: str, world: int = 2) -> Any:
    model = net(torch.float64)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    handle = realloc.attach(wrapped, optimizer, getattr(methods, name)(), schedule=realloc.every(4, total=STEPS))
    shares = []
    for step in range(STEPS):
        parts = [_batch(step, rank)] if world > 1 else [_batch(step, part) for part in range(2)]
        x, y = (torch.cat(column) for column in zip(*parts, strict=True))
        optimizer.zero_grad()
        cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        shares.append(model.get_buffer("realloc_rates").clone())
    return torch.stack(shares), [p.detach() for p in model.parameters()], handle.moves


def _other_seed(rank: int) -> str:
    model = DistributedDataParallel(net(torch.float64))
    optimizer = torch.optim.AdamW(model.parameters())
    try:
        realloc.attach(model, optimizer, methods.llrd(), seed=rank)
    except StateError as error:
        return str(error)
    return ""


NAMES = ("auto_rgn", "loss_change", "tempbalance")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    stories = {name: (_train, (name,)) for name in NAMES}
    return Ranks(Path(tmp_path_factory.mktemp("rates")), seeds=(_other_seed, ()), **stories)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_share_as_one_with_the_doubled_batch(ranks: Ranks, name: str) -> None:
    one, two = ranks.of(name)
    whole = _train(0, name, world=1)
    assert torch.equal(one[0], two[0]) and one[2] == two[2] == whole[2] > 0
    assert int((one[0] - whole[0]).abs().max()) <= 2  # millionths: sums over ranks round otherwise
    for mine, theirs, alone in zip(one[1], two[1], whole[1], strict=True):
        assert torch.equal(mine, theirs) and torch.allclose(mine, alone, rtol=0, atol=1e-7)


def test_ranks_of_other_seeds_are_refused(ranks: Ranks) -> None:
    assert all("use one seed" in told for told in ranks.of("seeds"))
