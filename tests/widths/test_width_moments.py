"""What a move does to values and optimizer state, beside `torch.optim` on plain parameters that are indexed by hand."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from wide_nets import Beside, attached, carried, cnn, data, loss_of, mlp, noted_moves, shape_of, step_on, widths

from realloc import methods
from realloc.allocate.room_of_widths import in_proportion
from realloc.grow.split import split
from realloc.methods.width_method import WidthMethod

OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1),
    "AdamW amsgrad": lambda p, lr: torch.optim.AdamW(p, lr=lr, amsgrad=True),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=0.01),
    "RMSprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.5, centered=True),
    "Adagrad": torch.optim.Adagrad,
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "Adadelta": torch.optim.Adadelta,
    "Rprop": torch.optim.Rprop,
}


@pytest.mark.parametrize("net", [lambda: mlp(5, 9, 8, 3, norm=True), lambda: cnn(6, 5, 7)], ids=["mlp", "cnn"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_entry_that_stays_is_trained_as_by_torch(name: str, net: Any, monkeypatch: Any) -> None:
    moves, model = noted_moves(monkeypatch), net()
    method = dataclasses.replace(methods.random_widths(drop=0.5, mature=0), compensate=False, share=in_proportion)
    optimizer, handle = attached(method, model, gap=3, total=16, optimizer=OPTIMIZERS[name])
    beside, came, both = Beside(handle, OPTIMIZERS[name], 1e-2), 0, 0
    optimizer.register_step_pre_hook(lambda *_: beside.step())
    shape = shape_of(model)
    for number in range(16):
        optimizer.zero_grad()
        loss_of(model, data(number, *shape)).backward()
        before = len(moves)
        optimizer.step()
        if len(moves) > before:
            sources = moves[-1][1]
            came += beside.move(sources)
            both += all(bool((old < 0).any()) for old in [*sources.values()][:2])
        beside.same(optimizer)
    assert handle.moves >= 4 and came >= 100 and both >= 1


def test_compensation_and_copies_leave_the_moments_where_they_belong(monkeypatch: Any) -> None:
    moves, model = noted_moves(monkeypatch), mlp(5, 9, 8, 3)
    method = dataclasses.replace(methods.random_widths(drop=0.4, mature=0), grow=split)
    optimizer, handle = attached(method, model, gap=3, total=100)
    beside = Beside(handle, torch.optim.AdamW, 1e-2)
    optimizer.register_step_pre_hook(lambda *_: beside.step())
    for number in range(3):
        optimizer.zero_grad()
        loss_of(model, data(number, 5)).backward()
        optimizer.step()
    beside.move(moves[-1][1])
    for parameter in beside.plain.values():  # values were written to: their moments stay
        parameter.data = beside.now(next(n for n, p in beside.plain.items() if p is parameter)).clone()
    beside.same(optimizer)
    assert handle.units_moved >= 3


def test_the_gradient_follows_its_entry(monkeypatch: Any) -> None:
    """Code that reads gradients after the step, or never zeroes them, finds those of the weights of now."""
    moves, model = noted_moves(monkeypatch), mlp(5, 9, 8, 3)
    optimizer, handle = attached(methods.random_widths(drop=0.4, mature=0), model, gap=1, total=4)
    grads: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, site in handle.sites.items():
            grads[name] = site.of(site.pool.parameter.grad).clone()

    optimizer.register_step_pre_hook(keep)
    step_on(model, optimizer, 0)
    pool = handle._holdings.wide[0]
    for member in pool.space.members:
        site = handle.sites[member.name]
        now = site.of(site.pool.parameter.grad)
        wanted = carried(grads[member.name], member, pool.space.groups, moves[-1][1], torch.zeros_like(now))
        assert torch.equal(now, wanted), member.name


def test_running_statistics_follow_their_unit(monkeypatch: Any) -> None:
    moves, model = noted_moves(monkeypatch), cnn(6, 5, 7)
    kept: list[dict[str, Tensor]] = []
    method = dataclasses.replace(methods.random_widths(drop=0.4, mature=0), compensate=False)
    norms = {"0": model[1], "3": model[4]}

    def statistics() -> dict[str, Tensor]:
        return {f"{g}.{p}": getattr(n, p).clone() for g, n in norms.items() for p in ("running_mean", "running_var")}

    optimizer, handle = attached(method, model, gap=2, total=12, before_move=lambda: kept.append(statistics()))
    came = 0
    for number in range(12):
        step_on(model, optimizer, number)
        if handle.steps % 2 == 0:
            for name, now in statistics().items():
                source = moves[-1][1][name.partition(".")[0]]
                fresh = 0.0 if name.endswith("mean") else 1.0
                wanted = [float(kept[-1][name][old]) if old >= 0 else fresh for old in source.tolist()]
                assert now.tolist() == wanted
                came += int((source < 0).sum())
    assert came >= 4 and not torch.equal(norms["0"].running_mean, torch.zeros_like(norms["0"].running_mean))


def test_a_copied_unit_brings_its_statistics(monkeypatch: Any) -> None:
    moves, model = noted_moves(monkeypatch), mlp(5, 9, 8, 3, norm=True)
    method = WidthMethod(
        "copying", keep=methods.random_widths().keep, want=methods.random_widths().want, grow=split,
        drop=methods.random_widths(drop=0.5).drop,
    )  # fmt: skip
    optimizer, handle = attached(method, model, gap=2, total=12)
    for number in range(2):
        step_on(model, optimizer, number)
    plan, sources = moves[-1]
    copies = {w.parameter: w for w in plan.writes if w.kind == "running"}
    assert copies
    for name, write in copies.items():
        norm = model.get_submodule(name.rpartition(".")[0])
        group = "0" if name == "1.weight" else "3"
        now = {int(old): at for at, old in enumerate(sources[group].tolist()) if old >= 0}
        for at, old in zip(write.units.tolist(), write.values.tolist(), strict=True):
            for part in ("running_mean", "running_var", "weight", "bias"):
                values = getattr(norm, part)
                assert values[at] == values[now[old]]
    assert handle.units_moved


@pytest.mark.parametrize(("moments", "low", "high"), [("median", 0.0, 1.0), ("zero", 3.0, 3.3)])
def test_the_first_update_of_a_recycled_unit(moments: str, low: float, high: float, monkeypatch: Any) -> None:
    """Late in a run, Adam's first update from zero moments is 3.2 times the rate; from the median it is below it."""
    rate, model, moves = 1e-3, mlp(8, 40, 4), noted_moves(monkeypatch)
    method = dataclasses.replace(methods.redo(threshold=0.9), moments=moments)
    optimizer, handle = attached(method, model, gap=2, total=100, lr=rate, weight_decay=0.0)
    step_on(model, optimizer, 0)
    for state in optimizer.state.values():  # as after five thousand steps with gradients like these
        state["step"].fill_(5000.0)
        state["exp_avg_sq"].mul_(1000.0)
    step_on(model, optimizer, 1)
    new = (moves[-1][1]["0"] < 0).nonzero().flatten()
    assert 5 <= len(new) == handle.units_moved and widths(handle) == {"0": 40}
    before = model[2].weight.detach().clone()
    second = optimizer.state[model.realloc_pool0]["exp_avg_sq"].clone()
    step_on(model, optimizer, 2)
    site = handle.sites["2.weight"]
    gradient, start = site.of(model.realloc_pool0.grad)[:, new], site.of(second)[:, new]
    moved = (model[2].weight.detach() - before)[:, new]
    wanted = -rate * 0.1 * gradient / ((0.999 * start + 0.001 * gradient**2).sqrt() + 1e-8)
    assert torch.allclose(moved, wanted, rtol=0.02)  # the corrections by 1 - beta^t are within a percent of 1 here
    assert low <= float((moved.abs() / rate).median()) <= high


@pytest.mark.parametrize("columns", [784, 1024])
def test_a_median_sees_every_kind_of_column(columns: int) -> None:
    """Inputs that are always zero and dead units leave second moments of zero, which say nothing of the others."""
    model = mlp(columns, 1024, 3, dtype=torch.float32)
    optimizer, handle = attached(methods.redo(0.9), model, gap=2, total=10)
    x = data(0, columns, dtype=torch.float32)
    x[:, :: columns // 4] = 0  # all that a stride of a quarter row meets
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    site, born = handle.sites["0.weight"], handle._holdings.wide[0].units("born")[0]
    second = site.of(optimizer.state[site.pool.parameter]["exp_avg_sq"])
    new, old = second[born > 0], second[born == 0]
    assert len(new) and bool((new == new[0, 0]).all()) and float(new[0, 0]) > 0
    below = float((old[old > 0] < new[0, 0]).double().mean())
    assert 0.2 < below < 0.6, "not near the median of what has gradients"


def test_the_optimizer_is_told_nothing_of_shapes() -> None:
    model = mlp(5, 9, 8, 3)
    optimizer, handle = attached(methods.width(drop=0.4, mature=0), model, gap=2, total=20)
    identity = [id(p) for g in optimizer.param_groups for p in g["params"]]
    step_on(model, optimizer, 0)
    shapes = {id(p): copy.copy(p.shape) for p in model.parameters()}
    for number in range(1, 20):
        step_on(model, optimizer, number)
    assert handle.units_moved and [id(p) for g in optimizer.param_groups for p in g["params"]] == identity
    assert {id(p): p.shape for p in model.parameters()} == shapes
