"""No gradient is not zero gradient: what took part in no backward comes out of the step as it went in."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.scores.taylor import taylor


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 12)
        self.experts = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor, used: tuple[int, ...]) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.head(x + sum(torch.tanh(self.experts[i](x)) for i in used))


def everything_of(site: object, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Values and state of one packed site, bit by bit."""
    pool, state = site.pool, optimizer.state[site.pool.parameter]
    found = {key: v for key, v in state.items() if torch.is_tensor(v) and v.shape == pool.parameter.shape}
    found |= {"places": site.places(), "values": pool.parameter.detach()}
    return {k: (v if k == "places" else pool.slots(v, site.index)).clone() for k, v in found.items()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, used: tuple[int, ...]) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    optimizer.zero_grad()
    (model(x, used) - x[:, :3] * x[:, 3:]).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["chts", "gmp", "granet", "rigl", "smet", "snfs", "sparse_evolution"])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
def test_an_unused_expert_is_left_alone(cls, name):
    model = Mixture().double()
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1} if cls is torch.optim.SGD else {"weight_decay": 0.5}
    optimizer = cls(model.parameters(), **settings)
    handle = realloc.attach(model, optimizer, getattr(methods, name)(0.4).on("*"), schedule=realloc.every(2, total=20))
    for number in range(1, 6):
        step(model, optimizer, number, (0, 1, 2))
    idle, busy = handle.sites["experts.1.weight"], handle.sites["experts.0.weight"]
    moves = handle.moves
    for number in range(6, 16):  # five moves are due
        before, other = everything_of(idle, optimizer), everything_of(busy, optimizer)
        step(model, optimizer, number, (0, 2))
        after = everything_of(idle, optimizer)
        assert all(torch.equal(before[key], after[key]) for key in before), number
        assert not torch.equal(other["values"], everything_of(busy, optimizer)["values"])
        assert handle.held + handle.parked == handle.budget
    assert handle.moves > moves
    before = everything_of(idle, optimizer)
    step(model, optimizer, 16, (1,))
    assert not torch.equal(before["values"], everything_of(idle, optimizer)["values"])  # and it wakes up


def test_an_expert_never_used_keeps_fresh_state():
    model = Mixture().double()
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.02)
    handle = realloc.attach(model, optimizer, methods.rigl(0.4).on("*"), schedule=realloc.every(2, total=20))
    values = handle.sites["experts.2.weight"].values().clone()
    for number in range(8):
        step(model, optimizer, number, (0, 1))
    state = everything_of(handle.sites["experts.2.weight"], optimizer)
    assert torch.equal(state["values"], values)
    assert bool((state["step_size"] == 0.02).all()) and not bool(state["prev"].any())


def test_the_running_mean_of_an_unused_expert_stays():
    for storage in ("packed", "masked"):
        model = Mixture().double()
        optimizer = torch.optim.AdamW(model.parameters())
        method = methods.snfs(0.4).on("*", storage=storage)
        handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=20))
        step(model, optimizer, 1, (0, 1, 2))
        index = [*handle.sites].index("experts.1.weight")
        before = model.get_buffer(f"realloc_average{index}").clone()
        assert bool(before.any())
        step(model, optimizer, 2, (0, 2))
        assert torch.equal(model.get_buffer(f"realloc_average{index}"), before)


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_one_bad_batch_does_not_poison_the_running_mean(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = methods.snfs(0.1).on("*", storage=storage)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(3, total=30))
    unread = int(
        (~handle.mask("0.weight").any(dim=0)).nonzero()[0]
    )  # no held weight reads it, no held gradient shows it
    for number in range(1, 7):
        x = torch.randn(8, 60, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        optimizer.zero_grad()
        out = model(x).square().mean()
        if number == 2:
            x[0, unread] = float("inf")
            out = torch.nan_to_num(model(x)).square().mean()
        out.backward()
        optimizer.step()
    assert bool(torch.isfinite(model.get_buffer("realloc_average0")).all())
    assert handle.moves == 2


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_a_layer_frozen_by_hand_neither_trains_nor_moves(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
    method = methods.rigl(0.4).on("*", storage=storage)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=20))

    def go(first: int, last: int) -> None:
        for number in range(first, last):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            optimizer.zero_grad()
            (model(x) - x[:, :3]).square().mean().backward()
            optimizer.step()

    go(0, 5)
    model[2].requires_grad_(False)
    weight, mask, moves = realloc.export.dense(model)[2].weight.clone(), handle.mask("2"), handle.moves
    go(5, 13)
    assert handle.moves == moves + 4
    assert torch.equal(realloc.export.dense(model)[2].weight, weight) and torch.equal(handle.mask("2"), mask)
    model[2].requires_grad_(True)
    go(13, 17)
    assert not torch.equal(realloc.export.dense(model)[2].weight, weight)


def test_keep_by_gradient_works_while_a_masked_layer_is_frozen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters())
    method = dataclasses.replace(methods.rigl(0.4), keep=taylor).on("*", storage="masked")
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=20))
    model[0].weight.requires_grad_(False)
    for number in range(4):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
    assert handle.moves == 2


# groups and schedulers --------------------------------------------------------------------------------------------


def test_groups_split_pools_and_keep_their_settings():
    def build(storage: str) -> tuple[nn.Module, torch.optim.Optimizer, realloc.Handle]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        groups = [
            {"params": [model[0].weight, model[2].weight], "lr": 0.05, "weight_decay": 0.2},
            {"params": [model[4].weight], "lr": 0.001, "betas": (0.5, 0.9)},
            {"params": [layer.bias for layer in model[::2]], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
        method = methods.smet(0.4).on("*", storage=storage)
        return model, optimizer, realloc.attach(model, optimizer, method, schedule=realloc.every(50, total=100))

    (packed, one, handle), (masked, two, _) = build("packed"), build("masked")
    assert len({site.pool for site in handle.sites.values()}) == 2
    assert [len(g["params"]) for g in one.param_groups] == [1, 1, 3]
    assert [(g["lr"], g["weight_decay"]) for g in one.param_groups] == [(0.05, 0.2), (0.001, 0.01), (0.01, 0.0)]
    for number in range(60):
        for model, optimizer in ((packed, one), (masked, two)):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            optimizer.zero_grad()
            (model(x) - x[:, :3]).square().mean().backward()
            optimizer.step()
        if number == 48:  # before the move: pools cannot trade, so the two storages may choose differently after it
            for mine, theirs in zip(*(realloc.export.dense(m).parameters() for m in (packed, masked)), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


SCHEDULERS = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda s: 1 / (1 + s), lambda s: 0.9**s]),
    "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=20),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
            torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=15),
        ],
        milestones=[5],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
def test_schedulers_made_before_attach_go_on(kind, cls):
    seen = []
    for attached in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        groups = [{"params": [*model[0].parameters()]}, {"params": [*model[2].parameters()], "lr": 0.05}]
        optimizer = cls(groups, lr=0.01, **({"momentum": 0.9} if cls is torch.optim.SGD else {}))
        scheduler = SCHEDULERS[kind](optimizer)
        if attached:
            handle = realloc.attach(model, optimizer, methods.rigl(0.4).on("*"), schedule=realloc.every(3, total=20))
        rates = []
        for number in range(18):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            optimizer.zero_grad()
            (model(x) - x[:, :3]).square().mean().backward()
            optimizer.step()
            scheduler.step()
            rates.append([(g["lr"], g.get("momentum"), g.get("betas")) for g in optimizer.param_groups])
        seen.append(rates)
    assert seen[0] == seen[1] and handle.moves > 3
