"""Touched rows under DDP: two processes hold equal rows, and train as one dense process with the doubled batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods
from realloc.errors import StateError

STEPS = 12


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-2)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(60, 6, padding_idx=0), Mean(), nn.Linear(6, 3)).double()


def _batch(step: int, part: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2 * step + part)
    return torch.randint(0, 25, (4, 3), generator=draw) + 9 * part + step % 5, torch.randint(0, 3, (4,), generator=draw)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def _train(rank: int, rows: int) -> Any:
    warnings.simplefilter("ignore")
    model = _net()
    realloc.prepare(model, methods.touched_rows(rows))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    handle = realloc.attach(wrapped, optimizer, methods.touched_rows(rows))
    seen = []
    for step in range(STEPS):
        _step(wrapped, optimizer, *_batch(step, rank))
        seen.append(model[0].realloc_slots.clone())
    state = realloc.export.dense(wrapped).state_dict()
    return torch.stack(seen), state, handle.state() | {"sites": 0}, model[0].realloc_touched.clone()


def _wrapped_first(rank: int) -> str:
    model = DistributedDataParallel(_net())
    try:
        realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.touched_rows(30))
    except StateError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = Path(tmp_path_factory.mktemp("rows"))
    return Ranks(folder, enough=(_train, (50,)), few=(_train, (30,)), late=(_wrapped_first, ()))


@pytest.mark.parametrize("story", ["enough", "few"])
def test_two_processes_hold_equal_rows(ranks: Ranks, story: str) -> None:
    one, two = ranks.of(story)
    assert torch.equal(one[0], two[0]) and torch.equal(one[3], two[3]) and one[2] == two[2]
    assert all(torch.equal(value, two[1][key]) for key, value in one[1].items())
    assert (one[2]["released_rows"] > 0) == (story == "few") and one[2]["left_rows"] == 0


def test_and_train_as_one_dense_process_with_the_doubled_batch(ranks: Ranks) -> None:
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(STEPS):
        parts = [_batch(step, part) for part in (0, 1)]
        _step(model, optimizer, *(torch.cat(both) for both in zip(*parts, strict=True)))
    found = ranks.of("enough")[0][1]
    for key, value in model.state_dict().items():
        assert torch.allclose(found[key], value, rtol=0, atol=1e-12), key


def test_a_model_that_was_wrapped_first_is_refused(ranks: Ranks) -> None:
    assert all("prepare() the model before DistributedDataParallel" in said for said in ranks.of("late"))
