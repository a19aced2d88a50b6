"""Two methods over pools of one model under DDP: two processes decide alike, and as one with the doubled batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, batch_of, net
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods

STEPS = 12
PAIRS = {
    "weights, widths": (methods.rigl(0.3, drop=0.5).on("0"), methods.width(drop=0.4, mature=0).on("2")),
    "weights twice": (methods.rigl(0.3, drop=0.5).on("0"), methods.snfs(0.4, drop=0.5).on("2")),
}


def _train(pair: str, rank: int | None) -> Any:
    model = net(torch.float64)
    for method in PAIRS[pair]:
        realloc.prepare(model, method)
    wrapped = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    schedule = realloc.every(2, total=STEPS)
    handles = [realloc.attach(wrapped, optimizer, method, schedule=schedule) for method in PAIRS[pair]]
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch_of(rank, step)
        cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        assert all(one.held + one.parked == one.budget for one in handles)
    whole = torch.cat([p.detach().flatten() for p in realloc.export.dense(wrapped).parameters()])
    return [dict(one.units) for one in handles], [one.moves for one in handles], whole


def _all(rank: int) -> Any:
    return {pair: _train(pair, rank) for pair in PAIRS}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(Path(tmp_path_factory.mktemp("side")), both=(_all, ()))


@pytest.mark.parametrize("pair", PAIRS)
def test_two_processes_decide_alike_and_as_one(ranks: Ranks, pair: str) -> None:
    one, two = (found[pair] for found in ranks.of("both"))
    alone = _train(pair, None)
    assert one[:2] == two[:2] == alone[:2] and all(one[1])
    assert torch.equal(one[2], two[2])
    torch.testing.assert_close(one[2], alone[2], rtol=0, atol=1e-9)
