"""A last decision that one rank's batch spoiled is made up for by all ranks alike, and as by one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, batch_of, net
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods

LAST, STEPS = 6, 12
PAIR = (methods.gmp(0.4).on("0"), methods.narrow(0.5, window=2).on("2"))


def _train(rank: int | None) -> Any:
    model = net(torch.float64)
    for method in PAIR:
        realloc.prepare(model, method)
    wrapped = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    schedule = realloc.every(2, until=LAST, total=STEPS)
    handles = [realloc.attach(wrapped, optimizer, method, schedule=schedule) for method in PAIR]
    dues = []
    for step in range(STEPS):
        values, state = [p.detach().clone() for p in model.parameters()], copy.deepcopy(optimizer.state_dict()["state"])
        optimizer.zero_grad()
        x, y = batch_of(rank, step)
        spoiled = step == LAST - 1 and rank in (None, 1)
        (cross_entropy(wrapped(x), y) * (float("nan") if spoiled else 1.0)).backward()
        optimizer.step()
        if step == LAST - 1:  # the user takes the step back, on all ranks
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), values, strict=True):
                    parameter.copy_(value)
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        assert all(one.held + one.parked == one.budget for one in handles)
        dues.append([one.next_due for one in handles])
    whole = torch.cat([p.detach().flatten() for p in realloc.export.dense(wrapped).parameters()])
    return dues, [one.held for one in handles], whole


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(Path(tmp_path_factory.mktemp("made_up")), both=(_train, ()))


@pytest.mark.filterwarnings(r"ignore:\[RA001\]")
def test_two_processes_make_up_for_it_alike_and_as_one(ranks: Ranks) -> None:
    one, two = ranks.of("both")
    alone = _train(None)
    assert one[:2] == two[:2] == alone[:2]
    assert one[0][LAST - 1 : LAST + 2] == [[LAST + 2] * 2, [LAST + 2] * 2, [None, None]]
    assert torch.equal(one[2], two[2])
    torch.testing.assert_close(one[2], alone[2], rtol=0, atol=1e-9)
