"""Input columns on two processes: the same ones on both, and those of one process with both batches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import Ranks
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods

sys.path.append(str(Path(__file__).resolve().parent.parent / "columns"))  # in a spawned process too

from tabular import SITE, net, rows

STEPS = 16


def _train(rank: int, name: str, world: int = 2) -> Any:
    method = getattr(methods, name)(3)
    model = net()
    realloc.prepare(model, method)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    handle = realloc.attach(wrapped, optimizer, method, schedule=realloc.every(3, until=13, total=STEPS))
    for step in range(STEPS):
        parts = [rows(2 * step + rank)] if world > 1 else [rows(2 * step + part) for part in range(2)]
        x, y = (torch.cat(column) for column in zip(*parts, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
    return handle.sites[SITE].places(), handle.moves, model[0].weight.detach().clone()


METHODS = ("entryprune", "neurofs", "quickselection")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(Path(tmp_path_factory.mktemp("columns")), **{name: (_train, (name,)) for name in METHODS})


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_hold_the_columns_of_one_with_both_batches(ranks: Ranks, name: str) -> None:
    one, two = ranks.of(name)
    whole = _train(0, name, world=1)
    assert one[1] == two[1] == whole[1] > 0 and len(one[0]) == 3
    assert torch.equal(one[0], two[0]) and torch.equal(one[0], whole[0])
    assert torch.equal(one[2], two[2])
    torch.testing.assert_close(one[2], whole[2], rtol=1e-8, atol=1e-10)
