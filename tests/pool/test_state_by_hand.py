"""Optimizer state after moves, against the same optimizer run by hand on the recorded gradients with masks."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

import realloc
from realloc import methods
from realloc.methods.method import Method
from realloc.pool.state import SPACED, Newcomers, spread, starts_of

STEPS = 24
# class, settings, and what a fresh instance writes where that is not zero
KINDS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}, {}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}, {}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, {}),
    "adam": (torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.01}, {}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.02, "amsgrad": True}, {}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}, {}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01}, {}),
    "centered": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}, {}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "initial_accumulator_value": 0.3}, {"sum": 0.3}),
    "nadam": (torch.optim.NAdam, {"lr": 0.02}, {}),
    "radam": (torch.optim.RAdam, {"lr": 0.02}, {}),
    "adamax": (torch.optim.Adamax, {"lr": 0.02}, {"exp_inf": 1e-8}),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}, {}),
    "asgd": (torch.optim.ASGD, {"lr": 0.05}, {}),
    "rprop": (torch.optim.Rprop, {"lr": 0.01}, {"step_size": 0.01}),
}
FUSED = {"sgd", "momentum", "nesterov", "adam", "amsgrad", "adamw", "adagrad"}
FORMS = [
    pytest.param(kind, form, id=f"{kind}-{form}")
    for kind in KINDS
    for form in ("plain", "foreach", "fused")
    if form != "fused" or kind in FUSED
]


def flags(form: str) -> dict[str, bool]:
    return {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[form]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9, bias=False), nn.Tanh(), nn.Linear(9, 5, bias=False)).double()


def loss_of(model: nn.Module, number: int) -> Tensor:
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return (model(x) - x[:, :5] * x[:, 2:7]).square().mean()


def dense_of(site: object, flat: Tensor) -> Tensor:
    """A pool-shaped tensor as the dense matrix of one site."""
    out = torch.zeros(site.capacity, dtype=flat.dtype)
    out[site.grid.elements(site.places())] = site.pool.slots(flat.detach(), site.index)
    return out.view(site.shape)


class ByHand:
    """One dense weight a site, masks and state moved by hand in plain torch."""

    def __init__(self, handle: realloc.Handle, kind: str, form: str) -> None:
        cls, settings, self.fresh = KINDS[kind]
        self.handle = handle
        self.masks = {name: handle.mask(name) for name in handle.sites}
        self.weights = {n: nn.Parameter(dense_of(s, s.pool.parameter)) for n, s in handle.sites.items()}
        self.optimizer = cls(self.weights.values(), **settings, **flags(form))

    def step(self, gradients: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.grad = gradients[name]
        self.optimizer.step()
        for name, weight in self.weights.items():
            weight.data.mul_(self.masks[name])

    def move(self) -> int:
        moved = 0
        for name, weight in self.weights.items():
            before, after = self.masks[name], self.handle.mask(name)
            changed = before ^ after
            moved += int((after & ~before).sum())
            weight.data[changed] = 0.0
            for key, value in self.optimizer.state[weight].items():
                if torch.is_tensor(value) and value.shape == weight.shape:
                    value[changed] = self.fresh.get(key, 0.0)
            self.masks[name] = after
        return moved

    def compare(self, optimizer: torch.optim.Optimizer) -> None:
        for name, site in self.handle.sites.items():
            mask, weight, pool = self.masks[name], self.weights[name], site.pool
            assert_same(dense_of(site, pool.parameter)[mask], weight[mask], name)
            mine, theirs = optimizer.state[pool.parameter], self.optimizer.state[weight]
            assert mine.keys() == theirs.keys()
            for key, value in theirs.items():
                if torch.is_tensor(value) and value.shape == weight.shape:
                    assert_same(dense_of(site, mine[key])[mask], value[mask], (name, key))
                else:
                    assert value is None or float(mine[key]) == pytest.approx(float(value))


def assert_same(mine: Tensor, theirs: Tensor, what: object) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("method", [methods.rigl(0.4), methods.granet(0.2, start=0.6)], ids=lambda m: m.name)
@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_state_follows_its_slot(kind, form, method):
    cls, settings, fresh = KINDS[kind]
    method = dataclasses.replace(method, moments="zero")
    model = net()
    optimizer = cls(model.parameters(), **settings, **flags(form))
    handle = realloc.attach(model, optimizer, method.on("*"), schedule=realloc.every(3, total=STEPS), seed=2)
    hand, moved = ByHand(handle, kind, form), 0
    for number in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        gradients = {n: dense_of(s, s.pool.parameter.grad) for n, s in handle.sites.items()}
        optimizer.step()
        hand.step(gradients)
        moved += hand.move()
        hand.compare(optimizer)
        (pool,) = {site.pool for site in handle.sites.values()}
        parked = slice(handle.held, None)
        assert not bool(pool.parameter[parked].any())
        for key, value in optimizer.state[pool.parameter].items():
            if torch.is_tensor(value) and value.shape == pool.parameter.shape:
                assert torch.allclose(value[parked], torch.tensor(fresh.get(key, 0.0)).double(), atol=1e-7), key
    assert moved == handle.units_moved > 5
    assert method.held is None or handle.parked > 10


# how the moments of a new slot start ------------------------------------------------------------------------------


def fill(method: Method, cls: type = torch.optim.AdamW, **settings: object) -> tuple[Tensor, dict, Tensor, Tensor]:
    """One move; the state of the only site before and after it, which places came, and their gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9, bias=False)).double()
    optimizer = cls(model.parameters(), **settings)
    handle = realloc.attach(model, optimizer, method.on("*"), schedule=realloc.every(3, total=30), seed=2)
    (site,) = handle.sites.values()
    for number in range(1, 4):
        optimizer.zero_grad()
        x = torch.randn(8, 7, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        out = model(x)
        out.retain_grad()
        out.square().mean().backward()
        full = out.grad.t() @ x
        if number == 3:
            twin = cls([w := nn.Parameter(site.pool.parameter.detach().clone())], **settings)
            twin.load_state_dict(
                copy.deepcopy(optimizer.state_dict()) | {"param_groups": twin.state_dict()["param_groups"]}
            )
            w.grad = site.pool.parameter.grad.clone()
            twin.step()
            before = {k: v for k, v in twin.state[w].items() if v.numel() > 1}
        old = handle.mask("0.weight")
        optimizer.step()
    come = handle.mask("0.weight") & ~old
    assert int(come.sum()) > 2
    state = {k: dense_of(site, v) for k, v in optimizer.state[site.pool.parameter].items() if v.numel() > 1}
    return come, before, state, full


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_median_starts_second_moments_at_the_median_of_the_site(cls):
    come, before, after, _ = fill(dataclasses.replace(methods.rigl(0.4), moments="median"), cls)
    for key, value in after.items():
        if key in {"exp_avg_sq", "square_avg", "sum"}:
            assert bool((value[come] == before[key].flatten().median()).all())
        else:
            assert not bool(value[come].any())


@pytest.mark.parametrize("block", [(1, 1), (2, 4)])
def test_a_median_over_evenly_spaced_slots_is_the_same_in_both_storages(block):
    """More slots than it looks at: which ones it takes must not depend on where they lie."""

    def run(storage: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(160, 128, bias=False)).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        method = methods.rigl(0.6).on("*", storage=storage, block=block)
        handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=30), seed=2)
        assert handle.held > 2 * SPACED
        for number in range(6):
            optimizer.zero_grad()
            x = torch.randn(8, 160, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            model(x).square().mean().backward()
            optimizer.step()
        assert handle.moves == 3
        (site,) = handle.sites.values()
        moments = optimizer.state[site.pool.parameter if storage == "packed" else site.parameter]["exp_avg_sq"]
        return (dense_of(site, moments) if storage == "packed" else moments) * handle.mask("0.weight")

    torch.testing.assert_close(run("packed"), run("masked"), rtol=1e-9, atol=0)


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adamax])
def test_seed_starts_second_moments_at_the_candidates_own_gradient(cls):
    come, _, after, full = fill(dataclasses.replace(methods.rigl(0.4), moments="seed"), cls)
    for key, value in after.items():
        if key in {"exp_avg_sq", "square_avg"}:  # Adam divides by 1 - beta2^t, and this is its third step
            weight = 1 - 0.999**3 if key == "exp_avg_sq" else 1.0
            torch.testing.assert_close(value[come], weight * full[come].square())
        elif key == "exp_inf":
            torch.testing.assert_close(value[come], full[come].abs())
        else:
            assert not bool(value[come].any())


def test_starts_are_in_pool_order_and_parked_slots_start_fresh():
    state = {"sum": torch.tensor([[1.0], [5.0], [9.0], [4.0]])}
    news = [
        Newcomers(torch.tensor([0, 1, 2]), 2),
        Newcomers(torch.tensor([3]), 1),
        Newcomers(torch.tensor([]).long(), 2),
    ]
    starts = starts_of("median", state, {"sum": 0.5}, news)
    assert starts["sum"].tolist() == [5.0, 5.0, 4.0, 0.5, 0.5]
    assert starts_of("zero", state, {"sum": 0.5}, news) == {"sum": 0.5}


def test_a_median_leaves_out_what_never_had_a_gradient():
    state = {"exp_avg_sq": torch.tensor([[0.0], [0.0], [3.0], [0.0], [9.0], [4.0], [0.0]])}
    news = [Newcomers(torch.tensor([0, 1, 2, 3, 4, 5]), 2), Newcomers(torch.tensor([0, 1, 6]), 1)]
    assert starts_of("median", state, {}, news)["exp_avg_sq"].tolist() == [4.0, 4.0, 0.0]


@pytest.mark.parametrize("shape", [(1024, 784), (1024, 1024), (512, 784), (300, 4096), (987, 610), (64, 100_000)])
def test_what_a_median_looks_at_lies_in_all_rows_and_columns(shape):
    rows, columns = shape
    seen = spread(rows * columns)
    assert len(seen) == SPACED and bool((seen.diff() > 0).all()) and seen[0] >= 0 and seen[-1] < rows * columns
    for counts, of in ((torch.bincount(seen % columns), columns), (torch.bincount(seen // columns), rows)):
        part = torch.nn.functional.pad(counts, (0, of - len(counts))).double()
        blocks = torch.stack([block.sum() for block in part.tensor_split(16)])
        assert float(blocks.max()) < 2 * SPACED / 16 and float(blocks.min()) > SPACED / 32
        assert int((part > 0).sum()) >= min(of, SPACED) / 4


def test_few_slots_are_looked_at_all():
    assert torch.equal(spread(SPACED), torch.arange(SPACED)) and len(spread(SPACED + 1)) <= SPACED


# attach on an optimizer with state, and back ----------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("kind", ["adagrad", "adam", "adamw", "momentum", "nadam", "rmsprop", "rprop"])
def test_state_is_carried_in_and_given_back(kind, storage):
    cls, settings, fresh = KINDS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    optimizer = cls(model.parameters(), **settings)

    def go(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for number in range(first, last):
            optimizer.zero_grad()
            loss_of(model, number).backward()
            optimizer.step()

    go(model, optimizer, 0, 6)
    plain, plain_optimizer = copy.deepcopy(
        (model, optimizer)
    )  # one call: the copy's optimizer holds the copy's weights
    schedule = realloc.every(100, total=1000)
    handle = realloc.attach(model, optimizer, methods.rigl(0.4).on("*", storage=storage), schedule=schedule)
    hooks = []
    for name in handle.sites:
        mask, weight = handle.mask(name), plain.get_parameter(name)
        weight.data[~mask] = 0.0
        for key, value in plain_optimizer.state[weight].items():
            if torch.is_tensor(value) and value.shape == weight.shape:
                value[~mask] = fresh.get(key, 0.0)
        hooks.append(weight.register_hook(lambda grad, mask=mask: grad * mask))
    go(model, optimizer, 6, 12)
    go(plain, plain_optimizer, 6, 12)
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-10, atol=1e-12)
    handle.detach()
    for hook in hooks:
        hook.remove()
    go(model, optimizer, 12, 18)
    go(plain, plain_optimizer, 12, 18)
    assert [*model.state_dict()] == [*plain.state_dict()]
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    shapes = [p.shape for p in optimizer.param_groups[0]["params"]]
    assert shapes == [p.shape for p in plain_optimizer.param_groups[0]["params"]]
    plain_optimizer.load_state_dict(optimizer.state_dict())  # saved by position: the order is the old one


def test_a_weight_of_one_element_carries_its_state_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 6), nn.Linear(6, 5)).double()
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(4, 1, dtype=torch.float64)
    model(x).sum().backward()
    optimizer.step()
    known = optimizer.state[model[0].weight]["exp_avg"].clone()
    handle = realloc.attach(model, optimizer, methods.rigl(1.0).on("*"), schedule=realloc.every(5, total=10))
    pool = handle.sites["0.weight"].pool
    assert optimizer.state[pool.parameter]["exp_avg"].shape == pool.parameter.shape
    assert torch.equal(optimizer.state[pool.parameter]["exp_avg"][0], known[0])
    model(x).sum().backward()
    optimizer.step()
