"""Several methods over pools on one model: sites that do not overlap, a budget each, one optimizer, one resume."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.errors import ConfigError, StateError
from realloc.handle import Handle

STEPS, EVERY = 20, 4
SCHEDULE = realloc.every(EVERY, total=STEPS)
Make = Callable[[], Any]


class Net(nn.Module):
    """Convolutions, then a body and a tail of linear layers; flat inputs of 2 x 6 x 6."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()
        )
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU())
        self.tail = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(self.eyes(x)))


PAIRS: dict[str, tuple[Make, Make]] = {
    "weights, widths": (lambda: methods.rigl(0.3).on("body.*"), lambda: methods.width(mature=0, drop=0.3).on("tail.*")),
    "widths, weights": (lambda: methods.width(mature=0, drop=0.3).on("tail.*"), lambda: methods.snfs(0.3).on("body.*")),
    "weights twice": (lambda: methods.rigl(0.3).on("body.*"), lambda: methods.rigl(0.5).on("tail.*")),
    "masks, weights": (
        lambda: methods.gmp(0.4).on("eyes.*", storage="masked"), lambda: methods.gse(0.4, candidates=0.3).on("tail.*"),
    ),
    "masks, widths": (
        lambda: methods.rigl(0.4).on("eyes.3", storage="masked"),
        lambda: methods.width(mature=0, drop=0.3).on("tail.*"),
    ),
    "columns, weights": (lambda: methods.entryprune(16).on("body.1"), lambda: methods.rigl(0.4).on("tail.*")),
    "widths twice": (
        lambda: methods.width(mature=0, drop=0.3).on("tail.*"), lambda: methods.narrow(0.6, window=2).on("body.1"),
    ),
}  # fmt: skip
EVERY_PAIR = pytest.mark.parametrize("pair", PAIRS)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().double()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    flat, other = [], []
    for parameter in model.parameters():
        (flat if parameter.ndim < 2 else other).append(parameter)
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": other, "weight_decay": 0.1}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=3e-3)


def made(pair: str, *, prepared: bool = False, seed: int = 0) -> tuple[Net, torch.optim.Optimizer, list[Handle]]:
    model, moving = net(seed), [make() for make in PAIRS[pair]]
    if prepared:
        for method in moving:
            realloc.prepare(model, method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3) if prepared else optimizer_of(model)
    return model, optimizer, [realloc.attach(model, optimizer, one, schedule=SCHEDULE) for one in moving]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> float:
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(16, 2, 6, 6, generator=draw, dtype=torch.float64)
    loss = nn.functional.cross_entropy(model(x), (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@EVERY_PAIR
@pytest.mark.parametrize("prepared", [False, True])
def test_each_keeps_its_budget_and_a_resume_goes_on_bit_for_bit(pair: str, prepared: bool) -> None:
    model, optimizer, handles = made(pair, prepared=prepared)
    budgets, saved, losses = [one.budget for one in handles], None, []
    for number in range(STEPS):
        if number == EVERY + 2:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        losses.append(step(model, optimizer, number))
        assert [one.budget for one in handles] == budgets
        assert all(one.held + one.parked == one.budget for one in handles)
        (account,) = realloc.accounts(model)
        assert (account.budget, account.held) == (sum(budgets), sum(one.held for one in handles))
    assert all(one.moves for one in handles)
    again, second, twins = made(pair, prepared=prepared, seed=1)
    assert saved is not None
    again.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    assert [step(again, second, number) for number in range(EVERY + 2, STEPS)] == losses[EVERY + 2 :]
    mine, its = model.state_dict(), again.state_dict()
    assert all(torch.equal(mine[key], its[key]) for key in mine)
    assert [one.units for one in handles] == [one.units for one in twins]


@EVERY_PAIR
def test_each_starts_as_it_does_alone(pair: str) -> None:
    _, _, handles = made(pair)
    for make, beside in zip(PAIRS[pair], handles, strict=True):
        model = net()
        alone = realloc.attach(model, optimizer_of(model), make(), schedule=SCHEDULE)
        assert (beside.units, beside.budget, beside.currency) == (alone.units, alone.budget, alone.currency)


@EVERY_PAIR
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_detached_in_any_order_a_plain_model_and_its_optimizer_are_left(pair: str, order: tuple[int, int]) -> None:
    model, optimizer, handles = made(pair)
    for number in range(EVERY * 2 + 1):
        step(model, optimizer, number)
    dense = realloc.export.dense(model)
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    model.eval(), dense.eval()
    wanted = model(x)
    assert torch.allclose(dense(x), wanted, rtol=0, atol=1e-12)
    assert {type(m) for m in dense.modules()} == {type(m) for m in net().modules()}
    assert not [name for name in dense.__dict__ if name.startswith("realloc")]
    for place in order:
        handles[place].detach()
        assert torch.allclose(model(x), wanted, rtol=0, atol=1e-12)
        other = handles[1 - place]
        if place == order[0]:
            step(model.train(), optimizer, 9)
            assert other.held + other.parked == other.budget
            wanted = model.eval()(x)
    assert [*model.state_dict()] == [*net().state_dict()]
    assert not [name for name in model.__dict__ if "realloc" in name or name.startswith("_ddp")]
    assert not model._forward_hooks and not model._forward_pre_hooks
    fresh, twin = net(), None
    twin = optimizer_of(fresh)
    names = [{id(p): name for name, p in one.named_parameters()} for one in (model, fresh)]
    there, wished = ([[known[id(p)] for p in g["params"]] for g in one.param_groups]
                     for one, known in zip((optimizer, twin), names, strict=True))  # fmt: skip
    assert there == wished, "the optimizer's state is saved by position"
    assert all(not any("realloc" in key for key in group) for group in optimizer.param_groups)
    step(model.train(), optimizer, 10)


@EVERY_PAIR
def test_an_average_follows_both(pair: str) -> None:
    model, optimizer, handles = made(pair)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for one in handles:
        one.follow(average)
    for number in range(STEPS):
        step(model, optimizer, number)
        average.update_parameters(model)
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    assert all(one.moves for one in handles) and average.eval()(x).isfinite().all()
    assert [*realloc.export.dense(average).state_dict()] == [*realloc.export.dense(model).state_dict()]


def test_what_overlaps_is_refused_by_name_and_nothing_changes() -> None:
    model = net()
    optimizer = optimizer_of(model)
    handle = realloc.attach(model, optimizer, methods.rigl(0.3).on("body.1", "tail.0"), schedule=SCHEDULE)
    realloc.attach(model, optimizer, methods.rigl(0.3).on("eyes.3", storage="masked"), schedule=SCHEDULE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method, word in (
        (methods.snfs(0.3).on("body.1"), r"body\.1\.weight is moved by rigl already; name other layers"),
        (methods.snfs(0.3).on("eyes.3"), r"eyes\.3\.weight is moved by rigl already"),
        (methods.width().on("eyes.0"), r"the width of 'eyes\.0' cannot move: rigl moves eyes\.3\.weight"),
        (methods.columns("50%").on("body.1"), r"'body\.1' is a Packed\w+, which has no input columns"),
    ):
        with pytest.raises(ConfigError, match=word):
            realloc.attach(model, optimizer, method, schedule=SCHEDULE)
    for method in (methods.lora(rank=2), methods.shira(budget=50)):
        with pytest.raises(StateError, match="attached already"):
            realloc.attach(model, optimizer, method, schedule=SCHEDULE)
    with pytest.raises(StateError, match="attached already"):
        realloc.attach(model, optimizer, methods.rigl(0.3), schedule=SCHEDULE)
    with pytest.raises(StateError, match="serves an attached model already"):
        realloc.attach(model, optimizer, methods.llrd())
    after = model.state_dict()
    assert [*after] == [*before] and all(torch.equal(after[key], before[key]) for key in before)
    assert handle.budget == handle.held


def test_ranks_stand_alone_and_another_model_has_another_optimizer() -> None:
    model = net()
    optimizer = optimizer_of(model)
    realloc.attach(model, optimizer, methods.lora(rank=2).on("body.*", train=("tail",)))
    with pytest.raises(StateError, match="attached already"):
        realloc.attach(model, optimizer, methods.rigl(0.3).on("tail.*"), schedule=SCHEDULE)
    one, other = net(), net(1)
    both = torch.optim.AdamW([*one.parameters(), *other.parameters()])
    realloc.attach(one, both, methods.rigl(0.3), schedule=SCHEDULE)
    with pytest.raises(StateError, match="serves an attached model already"):
        realloc.attach(other, both, methods.rigl(0.3), schedule=SCHEDULE)


def test_a_third_comes_and_one_that_left_makes_room() -> None:
    model = net()
    optimizer = optimizer_of(model)
    parts = [methods.rigl(0.3).on("body.*"), methods.width(mature=0, drop=0.3).on("tail.*"),
             methods.rigl(0.5).on("eyes.3", storage="masked")]  # fmt: skip
    handles = [realloc.attach(model, optimizer, one, schedule=SCHEDULE) for one in parts]
    for number in range(STEPS):
        step(model, optimizer, number)
        assert all(one.held + one.parked == one.budget for one in handles)
    assert all(one.moves for one in handles)
    handles[0].detach()
    handles[0] = realloc.attach(model, optimizer, methods.snfs(0.2).on("body.*"), schedule=realloc.every(4, total=40))
    for number in range(STEPS):
        step(model, optimizer, STEPS + number)
    assert handles[0].moves and len(realloc.accounts(model)) == 1


def test_a_state_with_one_of_them_missing_is_refused_before_anything_is_copied() -> None:
    model, optimizer, _ = made("weights, widths")
    step(model, optimizer, 0)
    state = model.state_dict()
    other, _, _ = made("weights, widths", seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    ours = [name for name in state if name.startswith("realloc_2_")]
    for gone in (ours, ours[:1]):
        with pytest.raises((RuntimeError, realloc.errors.RecordError), match=r"realloc_2_|missing"):
            other.load_state_dict({name: value for name, value in state.items() if name not in gone})
    after = other.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in ours)


def test_copies_and_pickles_bring_both() -> None:
    model, optimizer, _ = made("weights, widths")
    for number in range(EVERY + 1):
        step(model, optimizer, number)
    twin = copy.deepcopy(model)
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    assert len(realloc.accounts(twin)) == 1 and realloc.accounts(twin) == realloc.accounts(model)


def test_what_a_part_holds_is_seen_from_the_whole() -> None:
    """As Lightning's callback attaches the model inside a module."""
    whole = nn.ModuleDict({"model": net()})
    realloc.prepare(whole["model"], methods.lora(rank=2).on("body.*", train=("tail",)))
    (account,) = realloc.accounts(whole)
    assert account.held == account.budget > 0
    merged = realloc.export.merged(whole)
    assert [*merged.state_dict()] == [f"model.{name}" for name in net().state_dict()]
