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


def _irreducible() -> torch.Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _choose(rank: int, over: int) -> Any:
    """RHO: at each step the candidates of this rank, what they are worth, and which of them it trains."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 2).double())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    visits = realloc.Visits(N, methods.rho(_irreducible(), over=over), epochs=2)
    loader = DataLoader(realloc.indexed(_data()), batch_size=BATCH, sampler=visits)
    steps = []
    for _ in range(visits.epochs):
        for index, (x, y) in loader:
            with torch.no_grad():
                losses = cross_entropy(model(x), y, reduction="none")
            places = visits.choose(index, losses)
            steps.append((index, losses - _irreducible()[index], places))
            if len(places):
                losses = cross_entropy(model(x[places]), y[places], reduction="none")
                optimizer.zero_grad()
                visits.loss(index[places], losses).backward()
                optimizer.step()
    return steps, [p.detach() for p in model.parameters()], visits.spent, visits.budget - visits.parked


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
OVER = (3, 5)  # of batches of 4: at 5 some steps train nothing


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    stories = {name: (_train, (name,)) for name in NAMES}
    stories |= {f"rho {over}": (_choose, (over,)) for over in OVER}
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


@pytest.mark.parametrize("over", OVER)
def test_rho_chooses_on_each_rank_and_all_take_the_same_steps(ranks: Ranks, over: int) -> None:
    """Not the choice of one process with the doubled batch: equal numbers on each rank, the best of its own."""
    first, second = ranks.of(f"rho {over}")
    for mine, theirs in zip(first[0], second[0], strict=True):
        assert len(mine[2]) == len(theirs[2]) and not set(mine[0].tolist()) & set(theirs[0].tolist())
        for _, worth, places in (mine, theirs):
            assert torch.equal(places, worth.argsort(descending=True, stable=True)[: len(places)].sort().values)
    trained = sum(len(step[2]) for step in (*first[0], *second[0]))
    assert first[2:] == second[2:] and trained == first[2] == first[3] == 2 * 2 * (N // 2 // over)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first[1], second[1], strict=True))
