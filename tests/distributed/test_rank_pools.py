"""Pools of LoRA ranks, and of deltas, under DDP: two processes decide alike, and as one with the doubled batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, batch_of, masks, net
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.rank_method import RankMethod

STEPS = 12
RECIPES = {
    "random_ranks": methods.random_ranks(rank=3, drop=0.5), "adalora": methods.adalora(rank=3),
    "rank_gradient": methods.rank_gradient(rank=3), "para": methods.para(rank=2),
    "spiel": methods.spiel(budget=80, drop=0.5, steps=2),
}  # fmt: skip


def _start(method: RankMethod | DeltaMethod, wrap: bool) -> Any:
    model = net(torch.float64)
    realloc.prepare(model, method)
    model = DistributedDataParallel(model) if wrap else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return model, optimizer, realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=STEPS))


def _train(name: str, rank: int | None) -> Any:
    model, optimizer, handle = _start(RECIPES[name], rank is not None)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch_of(rank, step)
        cross_entropy(model(x), y).backward()
        optimizer.step()
        seen.append(masks(handle))
    return torch.stack(seen), handle.moves, next(iter(handle.sites.values())).pool.parameter.detach()


def _all(rank: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_train(name, rank) for name in RECIPES]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(Path(tmp_path_factory.mktemp("pools")), all=(_all, ()))


def test_two_processes_decide_alike(ranks: Ranks) -> None:
    one, two = ranks.of("all")
    for name, (a, moves, values), (b, other, theirs) in zip(RECIPES, one, two, strict=True):
        assert moves == other >= 1 and torch.equal(a, b), name
        assert torch.equal(values, theirs), name


def test_and_as_one_process_with_the_doubled_batch(ranks: Ranks) -> None:
    first, _ = ranks.of("all")
    for name, (seen, _, values) in zip(RECIPES, first, strict=True):
        alone = _train(name, None)
        if name != "rank_gradient":  # its halves of a batch are those of each process
            assert torch.equal(seen, alone[0]), name
            assert torch.allclose(values, alone[2], rtol=0, atol=1e-9), name
