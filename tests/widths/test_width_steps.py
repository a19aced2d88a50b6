"""Steps in which something is missing or broken: a layer that takes no part, NaN, a skipped step, no rows."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wide_nets import DOUBLE, attached, data, loss_of, mlp, step_on, widths

import realloc
from kinds import WIDTHS
from realloc import methods
from realloc.errors import ReallocWarning, StateError
from realloc.grow.grown import Grown, Growth
from realloc.methods.width_method import WidthMethod
from realloc.scores.neurons import WidthKeep

MAKE: dict[str, Callable[[], WidthMethod]] = {
    "width": lambda: methods.width(drop=0.3, mature=0), "morphnet": lambda: methods.morphnet(drop=0.3, mature=0),
    "gradmax": lambda: methods.gradmax(drop=0.3, mature=0),
    "random_widths": lambda: methods.random_widths(drop=0.3, mature=0),
    "narrow": lambda: methods.narrow(0.4), "redo": lambda: methods.redo(0.8),
    "continual_backprop": lambda: methods.continual_backprop(0.3, mature=0), "uniform_widths": methods.uniform_widths,
}  # fmt: skip


def test_every_method_is_here() -> None:
    assert sorted(MAKE) == WIDTHS


class Branches(nn.Module):
    """Two branches of the same shape; which ones run is set from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([mlp(6, 12, 10, 3), mlp(6, 12, 10, 3, seed=1)])
        self.used: tuple[int, ...] = (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.branches[i](x) for i in self.used) + 0.0


def everything(optimizer: torch.optim.Optimizer, handle: realloc.Handle, branch: int) -> dict[str, Tensor]:
    """Values and state of all entries of a branch."""
    found = {}
    for name, site in handle.sites.items():
        if name.startswith(f"branches.{branch}."):
            found[name] = site.of(site.pool.parameter.detach()).clone()
            for key, value in optimizer.state[site.pool.parameter].items():
                if value.shape == site.pool.parameter.shape:
                    found[f"{name}: {key}"] = site.of(value).clone()
    return found


@pytest.mark.parametrize("name", WIDTHS)
def test_a_branch_that_takes_no_part_comes_out_as_it_was(name: str) -> None:
    """Under weight decay and momentum, over steps in which the other branch moves; and it goes on afterwards."""
    model = Branches()
    optimizer, handle = attached(MAKE[name](), model, gap=3, total=30, weight_decay=0.1)
    for number in range(2):
        step_on(model, optimizer, number)
    model.used = (0,)
    before, start = everything(optimizer, handle, 1), widths(handle)
    assert len(before) == 5 * 3  # values and two moments of each
    for number in range(2, 8):
        step_on(model, optimizer, number)
    after = everything(optimizer, handle, 1)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    now = widths(handle)
    assert all(now[group] == start[group] for group in now if group.startswith("branches.1"))
    if name != "uniform_widths":
        assert handle.moves == 2
    assert handle.held + handle.parked == handle.budget and handle.held <= handle.budget
    model.used = (0, 1)
    step_on(model, optimizer, 8)
    later = everything(optimizer, handle, 1)
    assert not all(later[key].shape == after[key].shape and torch.equal(later[key], after[key]) for key in later)


def test_a_hidden_dimension_with_one_idle_reader_stays() -> None:
    """A trunk that two heads read: while one head is idle, nobody knows what a unit is worth to it."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.trunk, self.one, self.two = nn.Linear(6, 12), nn.Linear(12, 3), nn.Linear(12, 3)
            self.tail = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            self.both = True

        def forward(self, x: Tensor) -> Tensor:
            h = self.trunk(x).relu()
            return self.one(h) + self.tail(x) + (self.two(h) if self.both else 0.0)

    pytest.importorskip("torch_pruning")
    model = Heads().to(DOUBLE)
    method = dataclasses.replace(MAKE["random_widths"](), drop=realloc.schedule.constant(0.5))
    optimizer, handle = attached(method.on(example=data(0, 6, rows=1)), model, gap=2, total=20)
    assert widths(handle) == {"trunk": 12, "tail.0": 8}
    model.both = False
    idle = model.two.weight.detach().clone()
    for number in range(4):
        step_on(model, optimizer, number)
    assert widths(handle)["trunk"] == 12 and handle.moves == 2 and torch.equal(model.two.weight, idle)
    model.both = True
    seen = set()
    for number in range(4, 16):
        step_on(model, optimizer, number)
        seen.add(widths(handle)["trunk"])
    assert len(seen) > 1


def test_a_frozen_layer_stays_as_it_is_and_so_do_the_widths_beside_it() -> None:
    model = mlp(6, 12, 10, 8, 3)
    optimizer, handle = attached(MAKE["width"](), model, gap=2, total=40, weight_decay=0.1)
    for number in range(2):
        step_on(model, optimizer, number)
    model[4].requires_grad_(False)  # reads group 2, makes group 4
    before, start = copy.deepcopy(realloc.export.dense(model)[4].state_dict()), widths(handle)
    for number in range(2, 6):
        step_on(model, optimizer, number)
    dense, now = realloc.export.dense(model)[4], widths(handle)
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())
    assert not any(p.requires_grad for p in dense.parameters())
    assert now["2"] == start["2"] and now["4"] == start["4"]
    model[4].requires_grad_(True)
    for number in range(6, 20):
        step_on(model, optimizer, number)
    assert widths(handle) != now and model[4].weight.requires_grad


def test_freezing_a_container_does_not_reach_the_pools_and_says_so() -> None:
    model = nn.ModuleDict({"body": mlp(6, 12, 10), "head": mlp(10, 3)})

    def step() -> None:
        optimizer.zero_grad()
        model["head"](model["body"](data(0, 6))).square().mean().backward()
        optimizer.step()

    optimizer, handle = attached(MAKE["width"](), model, gap=2, total=20)
    step()
    model["body"].requires_grad_(False)
    with pytest.warns(ReallocWarning, match=r"RA004.*body\.2\.weight.*requires_grad_\(False\) on the layer itself"):
        step()
    for layer in (model["body"][0], model["body"][2]):
        layer.requires_grad_(False)
    before = realloc.export.dense(model)["body"].state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReallocWarning)  # that nothing is left to measure
        for _ in range(3):
            step()
    after = realloc.export.dense(model)["body"].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before) and handle.steps == 5


# broken steps -----------------------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in WIDTHS if name != "uniform_widths"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing(name: str, bad: float) -> None:
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(MAKE[name](), model, gap=3, total=30)
    for number in range(2):
        step_on(model, optimizer, number)
    before, start = state_of(model), widths(handle)
    optimizer.zero_grad()
    loss_of(model, data(2, 6)).backward()
    model.realloc_pool0.grad[3] = bad
    with pytest.warns(ReallocWarning, match="RA001.*no move at step 3: a gradient is NaN or Inf"):
        optimizer.step()
    assert handle.moves == 0 and widths(handle) == start
    for key in ("realloc_extents0", "realloc_widths0", "realloc_born0", "realloc_extents1"):
        assert torch.equal(before[key], model.state_dict()[key])
    assert torch.isfinite(model.realloc_worth0).all()


def test_a_broken_step_within_the_window_adds_nothing_to_what_is_known() -> None:
    """Clipped away by the user, as loops do: the sums of effects go on, and the move comes."""
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(MAKE["width"](), model, gap=4, total=40, optimizer=torch.optim.SGD)
    step_on(model, optimizer, 0)
    worth, values = model.realloc_worth0.clone(), model.realloc_pool0.detach().clone()
    assert worth.any()
    optimizer.zero_grad()
    loss_of(model, data(1, 6)).backward()
    model.realloc_pool0.grad[0] = float("nan")
    optimizer.step()
    assert torch.equal(model.realloc_worth0, worth)
    with torch.no_grad():
        model.realloc_pool0[0] = values[0]
    for number in range(2, 4):
        step_on(model, optimizer, number)
    assert handle.moves == 1 and handle.held <= handle.budget


def test_a_step_that_a_scaler_skips_counts_nothing() -> None:
    model = mlp(6, 12, 10, 3, dtype=torch.float32)
    optimizer, handle = attached(MAKE["width"](), model, gap=2, total=40)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def step(number: int, broken: bool) -> None:
        optimizer.zero_grad()
        loss = loss_of(model, data(number, 6, dtype=torch.float32)) * (float("inf") if broken else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step(0, False)
    before = state_of(model)
    step(1, True)
    assert handle.steps == 1 and handle.moves == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    step(2, False)
    assert handle.steps == 2 and handle.moves == 1 and bool(torch.isfinite(model.realloc_pool0).all())


def test_a_scaled_loss_moves_as_the_plain_one() -> None:
    ends = []
    for scale in (1.0, 2.0**12):
        model = mlp(6, 12, 10, 3)
        optimizer, handle = attached(MAKE["gradmax"](), model, gap=2, total=20)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        for number in range(12):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, data(number, 6))).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append((widths(handle), model.realloc_pool0.detach().clone()))
    assert ends[0][0] == ends[1][0] and torch.allclose(ends[0][1], ends[1][1], rtol=0, atol=1e-9)


def test_a_batch_without_rows_moves_nothing() -> None:
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(MAKE["redo"](), model, gap=1, total=10)
    model(torch.zeros(0, 6, dtype=DOUBLE)).sum().backward()
    with pytest.warns(ReallocWarning, match="RA001.*the batch had no rows"):
        optimizer.step()
    assert handle.moves == 0 and handle.steps == 1
    step_on(model, optimizer, 1)
    assert handle.moves == 1


def test_gradients_that_no_backward_brought_move_nothing_and_say_so() -> None:
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(MAKE["width"](), model, gap=1, total=10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ReallocWarning)
        optimizer.step()
    assert handle.moves == 0 and any("nothing was measured" in str(w.message) for w in caught)
    assert not any("storage='masked'" in str(w.message) for w in caught), "widths have no other storage"


@pytest.mark.parametrize("name", ["width", "gradmax", "redo", "continual_backprop", "morphnet"])
def test_micro_batches_decide_as_one_batch(name: str) -> None:
    ends: list[Any] = []
    for parts in (1, 4):
        model = mlp(6, 12, 10, 3)
        optimizer, handle = attached(MAKE[name](), model, gap=2, total=20)
        for number in range(8):
            optimizer.zero_grad()
            for part in data(number, 6).chunk(parts):
                (loss_of(model, part) / parts).backward()
            optimizer.step()
        assert handle.steps == 8 and handle.units_moved
        ends.append((widths(handle), model.realloc_pool0.detach().clone()))
    assert ends[0][0] == ends[1][0] and torch.allclose(ends[0][1], ends[1][1], rtol=0, atol=1e-8)


def test_a_forward_before_its_step_was_to_be_looked_at_shows_nothing() -> None:
    """Nothing known of outputs is not the same as outputs of zero, which ReDo would recycle."""
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(MAKE["redo"](), model, gap=10, total=20)
    loss = loss_of(model, data(0, 6))
    handle.reschedule(realloc.every(1, total=20))
    loss.backward()
    optimizer.step()
    assert handle.steps == 1 and handle.moves == 0
    step_on(model, optimizer, 1)
    assert handle.moves == 1 and handle.units_moved < 22


def test_a_layer_called_twice_is_seen_in_both_calls() -> None:
    """GradMax cannot tell which of its calls belong together, and grows nothing by gradient."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.often = mlp(6, 12, 3), False

        def forward(self, x: Tensor) -> Tensor:
            if not self.often:  # else it is refused at its first forward
                return self.net(x)
            return self.net(x) + self.net[2](self.net[1](self.net[0](2 * x))) + self.net[0](x).sum(1, keepdim=True)

    model = Twice()
    optimizer, handle = attached(dataclasses.replace(MAKE["gradmax"](), within=True), model, gap=2, total=4)
    step_on(model, optimizer, 0)
    model.often = True
    step_on(model, optimizer, 1)
    assert handle.moves == 1 and bool(torch.isfinite(model.realloc_pool0).all())


# strangers' parts -------------------------------------------------------------------------------------------------


def keeps(measure: Callable[..., Tensor]) -> WidthMethod:
    return dataclasses.replace(MAKE["random_widths"](), keep=WidthKeep("theirs", frozenset(), measure))


def grows(draw: Callable[..., Grown]) -> WidthMethod:
    return dataclasses.replace(MAKE["random_widths"](), grow=Growth("theirs", draw))


@pytest.mark.parametrize(
    ("method", "word"),
    [
        (lambda: keeps(lambda group, _: torch.zeros(group.width - 1)), r"theirs gave \(11,\) scores for 12 units of 0"),
        (lambda: dataclasses.replace(MAKE["width"](), share=lambda room: (1, 1)), r"gave \(1, 1\) units where .* stay"),
        (lambda: dataclasses.replace(MAKE["width"](), share=lambda room: room.widths[:1]), "it may only add"),
        (lambda: dataclasses.replace(MAKE["width"](), share=lambda room: (12, 40)), "costs .* the budget is"),
        (
            lambda: dataclasses.replace(MAKE["width"](), share=lambda room: (12, 400)),
            "do not match its counts or bounds",
        ),
        (lambda: grows(lambda group, *_: Grown({"0.weight": torch.zeros(1, 1)})), r"theirs (gave \(1, 1\)|names)"),
        (
            lambda: grows(lambda group, *_: Grown({"nobody": torch.zeros(1, 1)})),
            "theirs names 'nobody', which has no part",
        ),
    ],
)
def test_a_strangers_part_that_does_not_fit_is_named_before_anything_moves(method: Any, word: str) -> None:
    model = mlp(6, 12, 10, 3)
    optimizer, handle = attached(method(), model, gap=1, total=10)
    loss_of(model, data(0, 6)).backward()
    with pytest.raises(StateError, match=word):
        optimizer.step()
    assert handle.moves == 0 and widths(handle) == {"0": 12, "2": 10}
    assert torch.isfinite(model(data(1, 6))).all()


def test_scores_that_are_not_finite_move_nothing_and_say_whose() -> None:
    model = mlp(6, 12, 10, 3)
    method = keeps(lambda group, _: torch.full((group.width,), float("nan")))
    optimizer, handle = attached(method, model, gap=1, total=10)
    loss_of(model, data(0, 6)).backward()
    with pytest.warns(ReallocWarning, match="RA001.*theirs of 0 is not finite"):
        optimizer.step()
    assert handle.moves == 0
