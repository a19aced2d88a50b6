"""Rows that ids own on two processes: the same sketch, bit for bit, and the moves of one process with both batches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods
from realloc.errors import StateError

sys.path.append(str(Path(__file__).resolve().parent.parent / "hot_rows"))  # in a spawned process too

from nets import Net, batch

STEPS = 12


def _train(rank: int, score: str, world: int = 2) -> Any:
    model = Net(directions=4).double()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    handle = realloc.attach(wrapped, optimizer, methods.rows(score), schedule=realloc.every(4, total=STEPS))
    for step in range(STEPS):
        if world > 1 and step == 5 and rank == 1:
            wrapped.eval()  # what one rank looks up in a validation without gradients is nobody's
            with torch.no_grad():
                wrapped.module(*batch(77)[:2])
            wrapped.train()
        parts = [batch(2 * step + rank)] if world > 1 else [batch(2 * step + part) for part in range(2)]
        users, items, target = (torch.cat(column) for column in zip(*parts, strict=True))
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(wrapped(users, items), target.double()).backward()
        optimizer.step()
    return dict(model.state_dict()), handle.moves, [handle.owners(name) for name in ("users", "items")]


def _other_seed(rank: int) -> str:
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.AdamW(model.parameters())
    try:
        realloc.attach(model, optimizer, methods.rows(), schedule=realloc.every(4, total=STEPS), seed=rank)
    except StateError as error:
        return str(error)
    return ""


SCORES = ("gradient", "conflict", "random")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    stories = {score: (_train, (score,)) for score in SCORES}
    return Ranks(Path(tmp_path_factory.mktemp("hot")), seeds=(_other_seed, ()), **stories)


@pytest.mark.parametrize("score", SCORES)
def test_two_processes_move_as_one_with_both_batches(ranks: Ranks, score: str) -> None:
    one, two = ranks.of(score)
    whole = _train(0, score, world=1)
    assert one[1] == two[1] == whole[1] > 0
    for key, mine in one[0].items():
        assert torch.equal(mine, two[0][key]), key
    for mine, alone in zip(one[2], whole[2], strict=True):
        assert torch.equal(mine, alone)
    torch.testing.assert_close(one[0]["users.store.weight"], whole[0]["users.store.weight"], rtol=0, atol=1e-6)


def test_ranks_of_other_seeds_are_refused(ranks: Ranks) -> None:
    assert all("use one seed" in told for told in ranks.of("seeds"))
