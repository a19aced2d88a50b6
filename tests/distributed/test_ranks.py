from __future__ import annotations

import contextlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, batch, dense, masks, net, start
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods
from realloc.errors import StateError
from realloc.methods.method import Storage
from realloc.record.events import read
from realloc.schedule import constant


def _long(rank: int, moves: int, folder: str) -> Any:
    method = replace(methods.rigl(density=0.2), drop=constant(0.3), regrow=False)  # each decision moves something
    path = f"{folder}/run/events.jsonl"
    model, optimizer, handle = start(net(), method, every=1, total=moves, record=path)
    seen = []
    for step in range(moves):
        optimizer.zero_grad()
        x, y = batch(step, rank)
        cross_entropy(model(x), y).backward()
        optimizer.step()
        seen.append(masks(handle))
    return torch.stack(seen), handle.moves, dense(model)


def _alike(folder: Path, ends: list[Any], moves: int) -> None:
    (a, count, one), (b, other, two) = ends
    assert count == other == moves and torch.equal(a, b)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert bool((a[1:] != a[:-1]).any(1).all())  # every one of them moved something
    lines = read(folder / "run" / "events.jsonl").lines
    assert [line["step"] for line in lines] == list(range(1, moves + 1))  # once, not once for each rank


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Ranks:
    return Ranks(
        folder, long=(_long, (60, str(folder))), halves=(_all_halves, ()), experts=(_experts, ("packed",)),
        masked_experts=(_experts, ("masked",)),
        refused=(_refused, ()), faults=(_faults, ()),
    )  # fmt: skip


def test_ranks_take_the_same_decisions_for_60_moves(ranks: Ranks, folder: Path) -> None:
    _alike(folder, ranks.of("long"), 60)


@pytest.mark.slow
def test_ranks_take_the_same_decisions_for_1000_moves(tmp_path: Path) -> None:
    _alike(tmp_path, Ranks(tmp_path, long=(_long, (1000, str(tmp_path)))).of("long"), 1000)
    print("soak: two ranks, 1,000 moves, equal after each")


KINDS = {
    "rigl": (methods.rigl(0.2), False),
    "rigl masked": (methods.rigl(0.2).on("0", "2", storage="masked"), False),
    "snfs": (methods.snfs(0.2), False),
    "gse": (methods.gse(0.3), False),
    "granet": (methods.granet(0.1, start=0.4), False),
    "rigl accumulated": (methods.rigl(0.2), True),
    "entryprune": (methods.entryprune(3, candidates=0.4), False),
    "entryprune accumulated": (methods.entryprune(3, candidates=0.4), True),
    "masked accumulated": (methods.rigl(0.2).on("0", "2", storage="masked"), True),
}


def _halves(rank: int | None, kind: str) -> tuple[Tensor, dict[str, Tensor], int]:
    """Rank None: one process with the batches of both ranks."""
    method, accumulated = KINDS[kind]
    model, optimizer, handle = start(net(torch.float64), method, wrap=rank is not None)
    seen = []
    for step in range(24):
        optimizer.zero_grad()
        for micro in range(1 + accumulated):
            pieces = [batch(step + 100 * micro, part, torch.float64) for part in ([0, 1] if rank is None else [rank])]
            x, y = torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces])
            last = micro == accumulated
            with contextlib.nullcontext() if rank is None or last else model.no_sync():
                cross_entropy(model(x), y).backward()
        optimizer.step()
        seen.append(masks(handle))
    return torch.stack(seen), dense(model), handle.moves


def _all_halves(rank: int) -> dict[str, tuple[Tensor, dict[str, Tensor], int]]:
    return {kind: _halves(rank, kind) for kind in KINDS}


def test_two_ranks_are_one_rank_with_the_doubled_batch(ranks: Ranks) -> None:
    first, second = ranks.of("halves")
    for kind in KINDS:
        seen, weights, moves = _halves(None, kind)
        for other, theirs, count in (first[kind], second[kind]):
            assert torch.equal(seen, other), kind
            assert moves == count == 12, kind
            for name, weight in weights.items():
                assert torch.allclose(weight, theirs[name], rtol=0, atol=1e-10), (kind, name)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(8, 12), nn.Linear(12, 3)
        self.experts = nn.ModuleList([nn.Linear(12, 12) for _ in range(3)])
        self.double()

    def forward(self, x: Tensor, used: tuple[int, ...]) -> Tensor:
        x = self.first(x).relu()
        return self.head(sum(self.experts[i](x) for i in used).relu())


USED = ((0, 1), (0,))  # by rank: expert 1 on one rank only, expert 2 nowhere


def _experts(rank: int | None, storage: Storage) -> tuple[Tensor, dict[str, Tensor], bool]:
    method = methods.rigl(0.3).on("first", "experts.*", storage=storage)
    settings = {} if rank is None else {"find_unused_parameters": True}
    model, optimizer, handle = start(Mixture(), method, wrap=rank is not None, **settings)
    before = dense(model)["experts.2.weight"].clone()
    seen = []
    for step in range(12):
        optimizer.zero_grad()
        parts = [0, 1] if rank is None else [rank]
        losses = []
        for part in parts:
            x, y = batch(step, part, torch.float64)
            losses.append(cross_entropy(model(x, USED[part]), y))
        (sum(losses) / len(losses)).backward()
        optimizer.step()
        seen.append(masks(handle))
    after = dense(model)
    return torch.stack(seen), after, torch.equal(before, after["experts.2.weight"])


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_an_expert_used_on_one_rank_only(ranks: Ranks, storage: Storage) -> None:
    seen, weights, still = _experts(None, storage)
    assert still
    for other, theirs, unmoved in ranks.of("experts" if storage == "packed" else "masked_experts"):
        assert unmoved and torch.equal(seen, other)
        for name, weight in weights.items():
            if name != "experts.2.bias":  # DDP gives an unused bias a zero gradient, and AdamW decays it
                assert torch.allclose(weight, theirs[name], rtol=0, atol=1e-10), name


def _refused(rank: int) -> dict[str, str]:
    found = {}

    def refused(name: str, act: Any) -> None:
        try:
            act()
        except StateError as error:
            found[name] = str(error)

    refused("seeds", lambda: start(net(), methods.static(0.2), seed=rank))
    model, _, handle = start(net(), methods.granet(0.1, start=0.4))
    refused("compact", handle.compact)
    refused("wrapped", lambda: start(model, methods.rigl(0.1), wrap=False))
    refused("too late", lambda: realloc.prepare(DistributedDataParallel(net()), methods.rigl(0.1)))
    return found


def test_what_ranks_must_not_do_is_refused_on_each(ranks: Ranks) -> None:
    for found in ranks.of("refused"):
        assert "use one seed on all ranks" in found["seeds"]
        assert "one process" in found["compact"]
        assert "before DistributedDataParallel wraps it" in found["wrapped"]
        assert "before DistributedDataParallel wraps it" in found["too late"]


def _faults(rank: int) -> Any:
    """A NaN, and a batch without rows, on rank 1 alone, each on a step at which a move is due."""
    model, optimizer, handle = start(net(), methods.rigl(0.2), every=2)
    seen, codes = [], []
    for step in range(8):
        optimizer.zero_grad()
        x, y = batch(step, rank)
        if step == 3 and rank == 1:
            x = x[:0]
        loss = cross_entropy(model(x), y[: len(x)], reduction="sum")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (loss * float("nan") if step == 1 and rank == 1 else loss).backward()
            if step == 1:  # a poisoned update would end the test: look, do not step on
                for p in model.parameters():
                    p.grad.nan_to_num_(0.0) if p.ndim == 1 else None
            kept = {n: p.detach().clone() for n, p in model.named_parameters()}
            optimizer.step()
            if step == 1:
                with torch.no_grad():
                    for n, p in model.named_parameters():
                        p.copy_(kept[n])
                optimizer.state.clear()
        codes += [str(w.message)[:7] for w in caught if "RA0" in str(w.message)]
        seen.append((handle.moves, masks(handle)))
    return [m for m, _ in seen], torch.stack([s for _, s in seen]), codes


def test_a_fault_on_one_rank_moves_nothing_on_either(ranks: Ranks) -> None:
    (moves, seen, codes), (others, theirs, their_codes) = ranks.of("faults")
    assert moves == others == [0, 0, 0, 1, 1, 2, 2, 3]
    assert torch.equal(seen, theirs)
    assert codes == their_codes == ["[RA001]"]
