"""Example visits on two processes: no example on both, and the training of one process with the doubled batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import realloc
from realloc import methods
from realloc.errors import RecordError
from realloc.methods.example_method import ExampleMethod

N, EPOCHS, BATCH = 48, 5, 4


def _method(name: str) -> ExampleMethod:
    made = {
        "rs2": methods.rs2(0.5), "infobatch": methods.infobatch(0.6, full=0.2),
        "importance": methods.importance(gate=1),
    }  # fmt: skip
    return made[name]


def _data() -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=draw, dtype=torch.float64)
    return TensorDataset(x, (x[:, 0] > 0).long())


def _train(rank: int, name: str, world: int = 2) -> Any:
    torch.manual_seed(0)
    model: nn.Module = nn.Linear(4, 2).double()
    model = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    visits = realloc.Visits(N, _method(name), epochs=EPOCHS)
    loader = DataLoader(realloc.indexed(_data()), batch_size=BATCH * 2 // world, sampler=visits)
    seen = []
    for _ in range(EPOCHS):
        mine = []
        for index, (x, y) in loader:
            out = model(x)
            losses = cross_entropy(out, y, reduction="none")
            loss = visits.loss(index, losses, score=realloc.logit_gradient(out, y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mine.append(index)
        seen.append(torch.cat(mine))
    return seen, [p.detach() for p in model.parameters()], visits.spent, list(visits.per_epoch)


def _foreign(rank: int) -> str:
    visits = realloc.Visits(N, methods.rs2(), epochs=2)
    list(visits)
    state = visits.state_dict()
    state["numbers"][5] = 1 - rank
    try:
        visits.load_state_dict(state)
    except RecordError as error:
        return str(error)
    return ""


NAMES = ("rs2", "infobatch", "importance")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    stories = {name: (_train, (name,)) for name in NAMES}
    return Ranks(Path(tmp_path_factory.mktemp("visits")), foreign=(_foreign, ()), **stories)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one_with_the_doubled_batch(ranks: Ranks, name: str) -> None:
    first, second = ranks.of(name)
    seen, parameters, spent, per_epoch = _train(0, name, world=1)
    assert first[2] == second[2] == spent and first[3] == per_epoch
    for mine, theirs, whole in zip(first[0], second[0], seen, strict=True):
        assert torch.equal(torch.stack([mine, theirs], 1).flatten(), whole)  # ranks take turns
    for mine, theirs, whole in zip(first[1], second[1], parameters, strict=True):
        assert torch.equal(mine, theirs) and torch.allclose(mine, whole, rtol=0, atol=1e-12)


def test_the_state_of_another_rank_is_refused(ranks: Ranks) -> None:
    assert all("each rank's own" in told for told in ranks.of("foreign"))
