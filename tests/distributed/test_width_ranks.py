"""Widths under DDP: two processes decide alike, and as one with the doubled batch."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, batch, batch_of, net
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods
from realloc.errors import StateError
from realloc.grow.split import split
from realloc.methods.width_method import WidthMethod

STEPS = 12
RECIPES = {
    "width": methods.width(drop=0.4, mature=0, window=2),
    "width by copies": methods.width(drop=0.4, mature=0, grow=split),
    "morphnet": methods.morphnet(drop=0.4, mature=0),
    "gradmax": methods.gradmax(drop=0.4, mature=0),
    "narrow": methods.narrow(0.5),
    "redo": methods.redo(0.8),
    "continual_backprop": methods.continual_backprop(0.2, mature=0),
    "random_widths": methods.random_widths(drop=0.4, mature=0),
}


def _start(method: WidthMethod, wrap: bool, model: nn.Module | None = None, **settings: Any) -> Any:
    model = net(torch.float64) if model is None else model
    realloc.prepare(model, method)
    wrapped = DistributedDataParallel(model, **settings) if wrap else model
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    handle = realloc.attach(wrapped, optimizer, method, schedule=realloc.every(2, total=STEPS))
    return wrapped, optimizer, handle


def _train(method: WidthMethod, rank: int | None) -> tuple[Tensor, int, int, Tensor]:
    model, optimizer, handle = _start(method, rank is not None)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch_of(rank, step)
        cross_entropy(model(x), y).backward()
        optimizer.step()
        assert handle.held + handle.parked == handle.budget
        seen.append([*handle.state()["widths"].values()])
    whole = torch.cat([p.detach().flatten() for p in realloc.export.dense(model).parameters()])
    return torch.tensor(seen), handle.moves, handle.units_moved, whole


def _all(rank: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_train(method, rank) for method in RECIPES.values()]


class Switched(nn.Module):
    """The second half runs on rank 1 only."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList([net(torch.float64), net(torch.float64)])
        self.used: tuple[int, ...] = (0,)

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.halves[i](x) for i in self.used) + 0.0


def _switched(rank: int) -> Any:
    """What one rank sees counts on both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer, handle = _start(RECIPES["redo"], True, Switched(), find_unused_parameters=True)
        model.module.used = (0,) if rank == 0 else (0, 1)
        for step in range(4):
            optimizer.zero_grad()
            x, y = batch(step, rank, torch.float64)
            cross_entropy(model(x), y).backward()
            optimizer.step()
        units = torch.tensor([handle.moves, handle.units_moved])
        return units, torch.cat([p.detach().flatten() for p in realloc.export.dense(model).parameters()])


def _refused(rank: int) -> Any:
    """What ranks do not share is refused on both, before anything changes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = []
        model, optimizer, handle = _start(RECIPES["narrow"], True)
        try:
            handle.compact()
        except StateError as error:
            told.append(str(error))

        def broken(group: Any, generator: torch.Generator) -> Tensor:
            """Scores that are not the same on both."""
            return (1 - 2 * rank) * torch.arange(group.width, dtype=torch.float64)

        keep = dataclasses.replace(RECIPES["random_widths"].keep, measure=broken)
        model, optimizer, handle = _start(dataclasses.replace(RECIPES["random_widths"], keep=keep), True)
        try:
            for step in range(2):
                optimizer.zero_grad()
                x, y = batch(step, rank, torch.float64)
                cross_entropy(model(x), y).backward()
                optimizer.step()
        except StateError as error:
            told.append(str(error))
        return told


def _normed(rank: int) -> Any:
    """Running statistics on each rank: of plain torch, of widths that hold still, and of widths that moved."""
    found = []
    for method in (None, methods.uniform_widths(), methods.width(drop=0.4, mature=0)):
        torch.manual_seed(0)
        first, second = nn.Linear(8, 20), nn.Linear(20, 12)
        model = nn.Sequential(first, nn.BatchNorm1d(20), nn.ReLU(), second, nn.ReLU(), nn.Linear(12, 3)).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if method is None:
                model = DistributedDataParallel(model)
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            else:
                model, optimizer, _ = _start(method, True, model)
            for step in range(5):
                optimizer.zero_grad()
                x, y = batch(step, rank, torch.float64)
                cross_entropy(model(x), y).backward()
                optimizer.step()
            model(batch(5, 0, torch.float64)[0])  # the same on both: what they differed in was before it
        plain = model.module if method is None else realloc.export.dense(model)
        found.append(torch.cat([plain[1].running_mean, plain[1].running_var]))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = Path(tmp_path_factory.mktemp("widths"))
    return Ranks(folder, all=(_all, ()), switched=(_switched, ()), refused=(_refused, ()), normed=(_normed, ()))


def test_two_processes_decide_alike(ranks: Ranks) -> None:
    one, two = ranks.of("all")
    for name, (a, moves, units, values), (b, other, those, theirs) in zip(RECIPES, one, two, strict=True):
        assert moves == other >= 1 and torch.equal(a, b) and units == those, name
        assert torch.equal(values, theirs), name


def test_and_as_one_process_with_the_doubled_batch(ranks: Ranks) -> None:
    first, _ = ranks.of("all")
    for (name, method), (seen, moves, units, values) in zip(RECIPES.items(), first, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = _train(method, None)
        assert torch.equal(seen, alone[0]) and (moves, units) == alone[1:3], name
        assert torch.allclose(values, alone[3], rtol=0, atol=1e-9), name


def test_a_branch_that_one_rank_uses_moves_on_both(ranks: Ranks) -> None:
    (one, values), (two, theirs) = ranks.of("switched")
    assert torch.equal(one, two) and one[0] == 2 and one[1] >= 4
    assert torch.equal(values, theirs)


def test_what_ranks_do_not_share_is_refused(ranks: Ranks) -> None:
    one, two = ranks.of("refused")
    assert "compact() changes shapes, which DDP cannot see" in one[0] and one[0] == two[0]
    assert "ranks decided differently at step 2" in one[1] and one == two  # on both, so that none waits for the other


def test_running_statistics_are_those_of_the_first_rank_as_in_plain_ddp(ranks: Ranks) -> None:
    one, two = ranks.of("normed")
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.allclose(one[0], one[1], rtol=0, atol=1e-12)
