"""Layers that train in turn under DDP: two processes choose alike, and as one with the doubled batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, batch, batch_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods
from realloc.allocate.layer_costs import CostTable
from realloc.errors import ConfigError, StateError
from realloc.integrations.plan import Terms
from realloc.methods.layers import LayerMethod
from realloc.record.events import read

STEPS = 24
RECIPES = {
    "lisa": methods.lisa(2), "badam": methods.badam(), "random_layers": methods.random_layers(0.8),
    "layer_gradient": methods.layer_gradient(0.75), "autofreeze": methods.autofreeze(75, cache=None),
    "egeria": methods.egeria(0.9, tests=1, window=2, cache=None), "topk": methods.topk(2, cache=None),
}  # fmt: skip


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(4):
        parts += [nn.Linear(8, 8), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(8, 3)).double()


def _start(method: LayerMethod, wrap: bool, seed: int = 0, record: str | None = None) -> Any:
    model: Any = _net()
    schedule = realloc.every(3, total=STEPS) if method.moves else None
    if wrap and method.moves:
        model = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = realloc.attach(model, optimizer, method, schedule=schedule, seed=seed, record=record)
    if wrap and not method.moves:  # what never moves is attached first
        model = DistributedDataParallel(model)
    return model, optimizer, handle


def _train(method: LayerMethod, rank: int | None, record: str | None = None) -> tuple[Tensor, int, list[Tensor]]:
    """Rank None: one process with the batches of both ranks."""
    model, optimizer, handle = _start(method, rank is not None, record=record)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch_of(rank, step % 5)
        cross_entropy(model(x), y).backward()
        optimizer.step()
        seen.append(torch.tensor(list(handle.layers.values())))
    measured = [value for key, value in model.state_dict().items() if key.endswith(("layer_tests", "layer_norms"))]
    return torch.stack(seen), handle.moves, [*(p.detach() for p in model.parameters()), *measured]


def _all(rank: int, folder: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return [_train(method, rank, f"{folder}/{name}.jsonl") for name, method in RECIPES.items()]


def _own_clocks(rank: int) -> Any:
    """Each rank has timed its own table; rank 0's counts on both."""
    mine = CostTable((10 + rank,) * 4, (20,) * 4, (30 + 5 * rank,) * 4)
    model, optimizer, handle = _start(methods.random_layers(0.7).costing(mine), True)
    seen = []
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch(step, rank, torch.float64)
        cross_entropy(model(x), y).backward()
        optimizer.step()
        seen.append((handle.held, handle.budget))
    return seen, model.module.state_dict()["realloc_layer_costs"]


def _files(rank: int, folder: str) -> Any:
    """A frozen prefix that is read from memory, and from a file that both ranks name alike."""
    found = []
    for file in (None, f"{folder}/rows"):
        method = methods.topk(2, cache=realloc.Cache(file=file, dtype="float32", limit="1MB"))
        model, optimizer, handle = _start(method, True)
        for step in range(STEPS):
            optimizer.zero_grad()
            x, y = batch(step % 5, rank, torch.float64)
            cross_entropy(model(x), y).backward()
            optimizer.step()
        found.append([p.detach().clone() for p in model.parameters()])
        assert handle.hits is not None and handle.hits > 0.7
    return found


def _faults(rank: int) -> Any:
    """Rank 1 alone has an infinite activation, a batch of other length, or never calls the tested layer."""
    model, optimizer, handle = _start(RECIPES["egeria"], True)
    seen, codes = [], 0
    for step in range(9):
        optimizer.zero_grad()
        x, y = batch(step, rank, torch.float64)
        rows = 3 if rank and step == 5 else len(x)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = cross_entropy(model(x[:rows]), y[:rows])
            loss.backward()
            if rank and step == 2:
                handle._engine.sight.plasticity._entered = None
            optimizer.step()
        codes += sum("RA001" in str(w.message) for w in caught)
        seen.append(torch.tensor(list(handle.layers.values())))
    return torch.stack(seen), codes, list(handle._engine.sight.plasticity.tests)


def _refused(rank: int) -> dict[str, str]:
    found = {}

    def refused(name: str, act: Any) -> None:
        try:
            act()
        except (ConfigError, StateError) as error:
            found[name] = str(error)

    schedule = realloc.every(3, total=STEPS)
    plain, late = DistributedDataParallel(_net()), DistributedDataParallel(_net(), find_unused_parameters=True)
    adam = [torch.optim.AdamW(model.parameters()) for model in (plain, late)]
    refused("unused", lambda: realloc.attach(plain, adam[0], methods.badam(), schedule=schedule))
    refused("wrapped", lambda: realloc.attach(late, adam[1], methods.topk(2, cache=None)))
    refused("seeds", lambda: realloc.attach(late, adam[1], methods.badam(), schedule=schedule, seed=rank))
    terms = Terms(methods.badam(), 3, 0, 1.0, 0, None)
    refused("callback", lambda: terms.attach(late.module, adam[1], STEPS))
    realloc.attach(late, adam[1], methods.badam(), schedule=schedule)  # and nothing stayed of what was refused
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Ranks:
    return Ranks(
        folder, all=(_all, (str(folder),)), clocks=(_own_clocks, ()), files=(_files, (str(folder),)),
        faults=(_faults, ()), refused=(_refused, ()),
    )  # fmt: skip


def test_two_processes_choose_alike(ranks: Ranks, folder: Path) -> None:
    one, two = ranks.of("all")
    for (name, method), (a, moves, values), (b, other, theirs) in zip(RECIPES.items(), one, two, strict=True):
        assert torch.equal(a, b) and moves == other and (moves > 0) == method.moves, name
        assert all(torch.allclose(x, y, rtol=0, atol=0, equal_nan=True) for x, y in zip(values, theirs, strict=True))
        steps = [line["step"] for line in read(folder / f"{name}.jsonl").lines] if method.moves else []
        assert steps == ([*range(3, STEPS + 1, 3)] if method.moves else []), name  # once, not once for each rank


def test_and_as_one_process_with_the_doubled_batch(ranks: Ranks) -> None:
    first, _ = ranks.of("all")
    for (name, method), (seen, moves, values) in zip(RECIPES.items(), first, strict=True):
        alone, its, weights = _train(method, None)
        assert torch.equal(seen, alone) and moves == its, name
        for mine, theirs in zip(values, weights, strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-10, equal_nan=True), name


def test_rank_0s_clock_is_the_clock(ranks: Ranks) -> None:
    (seen, table), (others, theirs) = ranks.of("clocks")
    assert torch.equal(table, theirs) and table.tolist() == [[10] * 4, [20] * 4, [30] * 4]
    assert seen == others and all(held <= budget == 168 for held, budget in seen)


def test_each_rank_keeps_a_cache_file_of_its_own(ranks: Ranks, folder: Path) -> None:
    for memory, file in ranks.of("files"):
        assert all(map(torch.equal, memory, file))
    assert (folder / "rows").exists() and (folder / "rows.rank1").exists()


def test_a_layer_that_one_rank_did_not_see_freezes_on_none(ranks: Ranks) -> None:
    (seen, codes, tests), (others, theirs, same) = ranks.of("faults")
    assert codes == theirs == 1 and bool(seen[:5].all())
    assert torch.equal(seen, others) and tests == same and len(tests) == 2  # of 11 rows, then of 16


def test_what_ranks_must_not_do_is_refused_on_each(ranks: Ranks) -> None:
    for found in ranks.of("refused"):
        assert "find_unused_parameters=True" in found["unused"]
        assert "attach topk first" in found["wrapped"]
        assert "badam moves, and 2 processes train" in found["callback"]
        assert "use one seed on all ranks" in found["seeds"]
