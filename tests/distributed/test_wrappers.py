"""What stands around a model in a run of several processes: which wrappers are seen, and which order is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from ranks import Ranks, batch, masks, net
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import realloc
from realloc import methods
from realloc.errors import ConfigError, StateError
from realloc.observe.ranks import device_of

METHODS: Final[dict[str, Callable[[], Any]]] = {
    "rigl": lambda: methods.rigl(0.3),
    "columns": lambda: methods.columns(2),
    "width": methods.width,
    "lora": lambda: methods.lora(rank=2),
    "random_ranks": lambda: methods.random_ranks(rank=2),
    "spiel": lambda: methods.spiel(budget=40, steps=2),
}


class Derived(DistributedDataParallel):
    """A wrapper of somebody's own."""


def _train(rank: int, model: nn.Module, method: Any) -> Any:
    """Ranks see other rows, and decide alike where they know of each other."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=8))
    for step in range(8):
        optimizer.zero_grad()
        x, y = batch(step, rank)
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return handle


def _below(rank: int, wrap: Callable[[nn.Module], nn.Module]) -> Any:
    model = net()
    realloc.prepare(model, methods.rigl(0.3))
    handle = _train(rank, wrap(model), methods.rigl(0.3))
    return handle.moves, masks(handle)


def _subclass(model: nn.Module) -> nn.Module:
    return Derived(model)


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(DistributedDataParallel(model), backend="eager")  # type: ignore[return-value]


def _unprepared(rank: int) -> dict[str, str]:
    found = {}
    for name, made in METHODS.items():
        model = DistributedDataParallel(net(), find_unused_parameters=True)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            _train(rank, model, made())
        except StateError as error:
            found[name] = str(error)
        assert model.state_dict().keys() == before.keys()
    return found


def _alone(rank: int) -> dict[str, str]:
    rows = nn.Sequential(realloc.nn.Embedding(50, 8, rows="40%"), nn.Linear(8, 3))
    tried = {
        "rigl": (net(), methods.rigl(0.3)), "rows": (rows, methods.rows()), "auto_rgn": (net(), methods.auto_rgn()),
        "lisa": (net(), methods.lisa(1)),
    }  # fmt: skip
    found = {}
    for name, (model, method) in tried.items():
        try:
            realloc.attach(model, torch.optim.AdamW(model.parameters()), method, schedule=realloc.every(2, total=8))
        except StateError as error:
            found[name] = str(error)
    model = net()  # what never moves may be wrapped afterwards
    realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.llrd())
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(
        tmp_path_factory.mktemp("ranks"), subclass=(_below, (_subclass,)), compiled=(_below, (_compiled,)),
        unprepared=(_unprepared, ()), alone=(_alone, ()),
    )  # fmt: skip


@pytest.mark.parametrize("story", ["subclass", "compiled"])
def test_ranks_decide_alike_below_wrappers_of_every_kind(story: str, ranks: Ranks) -> None:
    (moves, one), (others, two) = ranks.of(story)
    assert moves == others > 0 and torch.equal(one, two)


def test_parameters_that_ddp_has_read_are_not_replaced(ranks: Ranks) -> None:
    for found in ranks.of("unprepared"):
        assert found.keys() == METHODS.keys()
        for text in found.values():
            assert "prepare() the model before DistributedDataParallel wraps it" in text


def test_what_moves_is_refused_where_ranks_do_not_know_of_each_other(ranks: Ranks) -> None:
    for found in ranks.of("alone"):
        assert found.keys() == {"rigl", "rows", "auto_rgn", "lisa"}
        for name, text in found.items():
            assert text.startswith(f"{name} moves, and 2 processes train")
            assert "attach() the model that it wraps" in text


def test_prepare_says_in_which_order_ddp_comes() -> None:
    for method, order in ((methods.rows(), "that DDP has wrapped"), (methods.topk(1), "before DDP wraps it")):
        with pytest.raises(ConfigError, match=order):
            realloc.prepare(net(), method)  # type: ignore[arg-type]


def test_tensors_are_sent_from_where_the_backend_can() -> None:
    assert [device_of(one) for one in ("gloo", "mpi", "nccl", "xccl")] == ["cpu", "cpu", "cuda", "xpu"]
    assert device_of("undefined") == device_of("cpu:gloo,cuda:nccl") == "cpu"
