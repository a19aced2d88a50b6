"""From a plain model and back: resume at every step, copies, averages, export, detach, and how users call a model."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from wide_nets import DOUBLE, IMAGE, attached, cnn, data, loss_of, mlp, noted_moves, shape_of, step_on, widths

import realloc
from realloc import methods
from realloc.errors import RecordError, StateError
from realloc.handle import Handle
from realloc.methods.width_method import WidthMethod
from realloc.record.checkpoint import load_latest, save
from realloc.record.state import pack, unpack

Run = tuple[nn.Module, torch.optim.Optimizer, Handle]


def moving(name: str = "width") -> WidthMethod:
    made = {
        "width": lambda: methods.width(drop=0.3, mature=3, window=4), "redo": lambda: methods.redo(0.8),
        "morphnet": lambda: methods.morphnet(drop=0.3, mature=0), "narrow": lambda: methods.narrow(0.5, window=3),
        "random_widths": lambda: methods.random_widths(drop=0.3, mature=0),
    }  # fmt: skip
    return made[name]()


def started(name: str = "width", *, model: nn.Module | None = None, seed: int = 0, **settings: Any) -> Run:
    model = cnn(6, 5, 7) if model is None else model
    optimizer, handle = attached(moving(name), model, gap=4, total=16, seed=seed, **settings)
    return model, optimizer, handle


def train(run: Run, first: int, last: int) -> None:
    for number in range(first, last):
        step_on(run[0], run[1], number)


def same(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["width", "redo", "narrow"])
@pytest.mark.parametrize("model_first", [True, False])
def test_a_resume_is_bit_equal_at_every_step_of_an_interval(name: str, model_first: bool) -> None:
    straight = started(name)
    saved = []
    for number in range(10):
        if number >= 4:
            saved.append(copy.deepcopy((straight[0].state_dict(), straight[1].state_dict())))
        step_on(straight[0], straight[1], number)
    assert straight[2].moves == 2
    for stop, (model, optimizer) in enumerate(saved, 4):
        again = started(name, seed=99)
        for part, state in [(again[0], model), (again[1], optimizer)][:: 1 if model_first else -1]:
            part.load_state_dict(state)
        train(again, stop, 10)
        assert same(again[0], straight[0]), f"stopped after step {stop}"
        moments, wanted = again[1].state_dict()["state"], straight[1].state_dict()["state"]
        assert all(torch.equal(moments[i][key], wanted[i][key]) for i in wanted for key in wanted[i])
        assert widths(again[2]) == widths(straight[2]) and again[2].moves == 2


def test_through_a_checkpoint_file_and_a_prepared_model(tmp_path: Any) -> None:
    straight = started("random_widths")
    train(straight, 0, 7)
    packed = pack(straight[0], straight[1], {})
    save(tmp_path, 7, packed.tensors, packed.state)
    train(straight, 7, 14)
    model = cnn(6, 5, 7, seed=4)
    realloc.prepare(model, moving("random_widths"), seed=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = realloc.every(4, total=16)
    handle = realloc.attach(model, optimizer, moving("random_widths"), schedule=schedule, seed=8)
    found = load_latest(tmp_path)
    assert found is not None and found.step == 7
    unpack(found.tensors, found.state, model, optimizer)
    train((model, optimizer, handle), 7, 14)
    assert same(model, straight[0])


def test_one_without_the_other_is_refused_by_name() -> None:
    run = started("random_widths")
    train(run, 0, 5)
    kept = copy.deepcopy((run[0].state_dict(), run[1].state_dict()))
    train(run, 5, 9)
    for part, state in ((run[0], kept[0]), (run[1], kept[1])):
        other = started("random_widths")
        train(other, 0, 9)
        target = other[0] if part is run[0] else other[1]
        target.load_state_dict(state)
        with pytest.raises(StateError, match="one was loaded without the other"):
            step_on(other[0], other[1], 9)
        if part is run[0]:
            other[2].restart_moments()
            step_on(other[0], other[1], 9)


def test_states_that_do_not_belong_are_refused_before_anything_is_copied() -> None:
    run = started()
    train(run, 0, 5)
    model = run[0]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    good = {key: value.clone() for key, value in before.items()}
    shift = torch.tensor([1, 0, 0])
    cases: dict[str, dict[str, Tensor]] = {
        "dense weight: this state comes from a plain model": cnn(6, 5, 7).state_dict(),
        "in the state": started(model=cnn(6, 4, 7))[0].state_dict(),
        "extents do not fit the widths": good | {"realloc_widths0": good["realloc_widths0"] + shift},
        "units in the state, 1 to 24 fit here": good | {"realloc_widths0": good["realloc_widths0"] * 0},
        "float32 in the state|torch.float32": good | {"realloc_widths0": good["realloc_widths0"].float()},
        "extents do not fit": good | {"realloc_extents0": good["realloc_extents0"].roll(1)},
        "is missing": {key: value for key, value in good.items() if key != "realloc_worth0"},
        "values never travel without": {key: value for key, value in good.items() if key != "realloc_extents1"},
        "does not match its digest": _swapped(good),
        "budget": started("narrow", model=cnn(6, 5, 8))[0].state_dict(),
    }
    for word, state in cases.items():
        with pytest.raises(RecordError, match=word if word != "budget" else "in the state|budget"):
            model.load_state_dict(state)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items()), word
    train(run, 5, 6)


def _swapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Widths and extents of another allocation, that fit each other but not the stamp."""
    other = started("random_widths")
    train(other, 0, 9)
    found = other[0].state_dict()
    names = [key for key in state if key.startswith(("realloc_widths", "realloc_extents"))]
    return state | {name: found[name] for name in names}


def test_a_load_by_assign_brings_its_own_widths() -> None:
    """A prepared model whose tensors are replaced computes at the widths that came, not at those it remembers."""
    run, fresh = started("random_widths"), cnn(6, 5, 7)
    realloc.prepare(fresh, moving("random_widths"))
    fresh.eval()
    seen = set()
    for first in (0, 4, 8):
        train(run, first, first + 4)
        fresh.load_state_dict({key: value.clone() for key, value in run[0].state_dict().items()}, assign=True)
        assert torch.equal(fresh(data(0, *IMAGE)), run[0].eval()(data(0, *IMAGE)))
        run[0].train()
        seen.add(tuple(widths(run[2]).values()))
    assert len(seen) >= 2


# copies and averages ----------------------------------------------------------------------------------------------


def test_a_deep_copy_and_a_pickle_are_models_of_their_own() -> None:
    run = started("random_widths")
    train(run, 0, 5)
    twin, file = copy.deepcopy(run[0]), io.BytesIO()
    torch.save(run[0], file)
    file.seek(0)
    again, x = torch.load(file, weights_only=False), data(1, *IMAGE)
    run[0].eval()
    for other in (twin, again):
        assert torch.equal(other.eval()(x), run[0](x))
    run[0].train()
    twin.train()
    kept, now = copy.deepcopy(twin.state_dict()), widths(run[2])
    train(run, 5, 9)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in kept.items())
    assert widths(run[2]) != now
    # the copy can be attached and moves by itself
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    schedule = realloc.every(4, total=16)
    second = realloc.attach(twin, optimizer, moving("random_widths"), schedule=schedule)
    mine = {key: value.clone() for key, value in run[0].state_dict().items()}
    train((twin, optimizer, second), 5, 9)
    assert second.moves == run[2].moves == 2
    assert all(torch.equal(value, run[0].state_dict()[key]) for key, value in mine.items())


@pytest.mark.parametrize("followed", [True, False])
def test_an_average_follows_the_moves_or_is_refused(followed: bool, monkeypatch: Any) -> None:
    moves = noted_moves(monkeypatch)
    run = started("random_widths", model=mlp(6, 9, 8, 3))
    average = AveragedModel(run[0], multi_avg_fn=get_ema_multi_avg_fn(0.5))
    if followed:
        run[2].follow(average)
    wanted: dict[str, Tensor] = {}
    for number in range(9):
        before = len(moves)
        step_on(run[0], run[1], number)
        if not followed and len(moves) > before:
            with pytest.raises(StateError, match=r"handle\.follow"):
                average.update_parameters(run[0])
                average(data(0, 6))
            return
        average.update_parameters(run[0])
        plain = realloc.export.dense(average)
        if len(moves) == before and number:  # between moves: the mean of parameters, entry by entry
            now = dict(realloc.export.dense(run[0]).named_parameters())
            for name, value in plain.named_parameters():
                name = name.removeprefix("module.")
                assert torch.allclose(value, 0.5 * wanted[name] + 0.5 * now[name], rtol=0, atol=1e-12)
        wanted = {name.removeprefix("module."): value.detach() for name, value in plain.named_parameters()}
    assert run[2].moves == 2 and [p.shape for p in wanted.values()] == [
        p.shape for p in realloc.export.dense(run[0]).parameters()
    ]


def test_a_follower_keeps_its_own_average_of_units_that_stay(monkeypatch: Any) -> None:
    moves = noted_moves(monkeypatch)
    run = started("random_widths", model=mlp(6, 9, 8, 3))
    average = AveragedModel(run[0], multi_avg_fn=get_ema_multi_avg_fn(0.9))
    run[2].follow(average)
    for number in range(3):
        step_on(run[0], run[1], number)
        average.update_parameters(run[0])
    before = realloc.export.dense(average)
    step_on(run[0], run[1], 3)
    sources, after = moves[-1][1], realloc.export.dense(average)
    rows = sources["0"]
    stay = (rows >= 0).nonzero().flatten()
    old, new = (m.module[0].weight if hasattr(m, "module") else m[0].weight for m in (before, after))
    assert len(stay) < 9 and torch.equal(new[stay], old[rows[stay]])


# export and detach ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: cnn(6, 5, 7), lambda: mlp(6, 9, 8, 3, norm=True)], ids=["cnn", "mlp"])
def test_export_and_detach_give_a_plain_model_of_the_widths_of_now(make: Any) -> None:
    model = make()
    shape, keys = shape_of(model), [*model.state_dict()]
    run = started("random_widths", model=model)
    train(run, 0, 9)
    x, now, moments = data(3, *shape), widths(run[2]), run[1].state_dict()
    assert now != dict.fromkeys(now, 0) and moments
    model.eval()
    wanted = model(x).detach()
    plain = realloc.export.dense(model)
    assert torch.equal(plain(x), wanted) and [*plain.state_dict()] == keys
    states = {n: {k: v.clone() for k, v in _state(run, n).items()} for n in run[2].sites}
    run[2].detach()
    assert torch.equal(model(x), wanted) and [*model.state_dict()] == keys
    for mine, theirs in zip(model.modules(), make().modules(), strict=True):
        assert type(mine) is type(theirs)
        assert not [key for key in vars(mine) if key.startswith("realloc")] and not mine._forward_hooks
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    layers = [module for module in model if isinstance(module, nn.Linear | nn.Conv2d)]
    assert [len(layer.weight) for layer in layers[:-1]] == [*now.values()] and repr(model) == repr(plain)
    # the optimizer goes on with the moments it had
    assert [id(p) for g in run[1].param_groups for p in g["params"]] == [id(p) for p in model.parameters()]
    for name, state in states.items():
        for key, value in state.items():
            assert torch.equal(run[1].state[model.get_parameter(name)][key], value)
    model.train()
    loss = step_on(model, run[1], 20)
    assert step_on(model, run[1], 20) < loss


def _state(run: Run, name: str) -> dict[str, Tensor]:
    site = run[2].sites[name]
    pool = site.pool.parameter
    return {key: site.of(value) for key, value in run[1].state[pool].items() if value.shape == pool.shape}


def test_detach_at_once_is_the_model_that_was_given() -> None:
    model, plain = cnn(6, 5, 7), cnn(6, 5, 7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    other = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    for number in range(3):
        step_on(model, optimizer, number)
        step_on(plain, other, number)
    handle = realloc.attach(model, optimizer, moving(), schedule=realloc.every(50, total=100))
    for number in range(3, 6):  # no move is due: the pools train as the plain model does
        assert step_on(model, optimizer, number) == step_on(plain, other, number)
    handle.detach()
    assert same(model, plain)
    for number in range(6, 9):
        assert step_on(model, optimizer, number) == step_on(plain, other, number)
    assert same(model, plain)


# how users call a model -------------------------------------------------------------------------------------------


def test_evaluation_between_steps_changes_nothing() -> None:
    one, two = started("width"), started("width")
    for number in range(9):
        step_on(one[0], one[1], number)
        two[0].eval()
        with torch.no_grad():
            two[0](data(50 + number, *IMAGE))
        with torch.inference_mode():
            two[0](data(80 + number, *IMAGE))
        two[0].train()
        step_on(two[0], two[1], number)
    assert same(one[0], two[0]) and one[2].units_moved


def test_a_weight_read_outside_a_forward_is_the_one_that_trains() -> None:
    run = started("random_widths", model=mlp(6, 9, 8, 3))
    train(run, 0, 4)
    model, dense = run[0], realloc.export.dense(run[0])
    for index in (0, 2, 4):
        assert torch.equal(model[index].weight, dense[index].weight) and torch.equal(
            model[index].bias, dense[index].bias
        )
        assert (model[index].in_features, model[index].out_features) == dense[index].weight.shape[::-1]
    assert repr(model[0]).startswith("WideLinear(in_features=6")
    # a penalty on it alone reaches its slots and nobody else's
    run[1].zero_grad()
    model[2].weight.square().sum().backward()
    pool, site = model.realloc_pool0, run[2].sites["2.weight"]
    assert torch.equal(site.of(pool.grad), 2 * dense[2].weight)
    assert int((pool.grad != 0).sum()) == dense[2].weight.numel()
    before = realloc.export.dense(model)
    run[1].step()
    after = realloc.export.dense(model)
    assert torch.equal(after[0].weight, before[0].weight) and torch.equal(after[4].weight, before[4].weight)
    assert not torch.equal(after[2].weight, before[2].weight)
    with pytest.raises(RuntimeError, match="detach"):
        model[0].reset_parameters()


def test_a_part_of_the_model_called_alone() -> None:
    run = started("random_widths")
    train(run, 0, 5)
    x, dense = data(2, *IMAGE), realloc.export.dense(run[0])
    run[0].eval()
    dense.eval()
    assert torch.equal(run[0][:3](x), dense[:3](x)) and torch.equal(run[0][0](x), dense[0](x))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.net, self.reentrant = mlp(6, 12, 10, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.net(x)
        return checkpoint(self.net, x.requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("name", ["width", "redo"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_moves_as_without(name: str, reentrant: bool) -> None:
    runs = [started(name, model=Checkpointed(kind)) for kind in (None, reentrant)]
    for run in runs:
        train(run, 0, 9)
        assert run[2].moves == 2 and run[2].units_moved
    assert widths(runs[0][2]) == widths(runs[1][2])
    a, b = (run[0].state_dict() for run in runs)
    assert all(torch.allclose(a[key].double(), b[key].double(), rtol=0, atol=1e-10) for key in a if "book" not in key)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_moves_and_gives_the_same_numbers() -> None:
    torch._dynamo.reset()
    straight, run = started("random_widths", model=mlp(6, 12, 10, 3)), started("random_widths", model=mlp(6, 12, 10, 3))
    compiled = torch.compile(run[0], backend="aot_eager")
    for number in range(14):
        step_on(straight[0], straight[1], number)
        run[1].zero_grad()
        loss_of(compiled, data(number, 6)).backward()
        run[1].step()
    assert run[2].moves == straight[2].moves == 3 and widths(run[2]) == widths(straight[2])
    a, b = run[0].state_dict(), straight[0].state_dict()
    assert all(torch.allclose(a[key], b[key], rtol=0, atol=1e-9) for key in a if a[key].is_floating_point())

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = run[0]

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.net[0].weight.t()

    x = data(1, 6)
    assert torch.allclose(torch.compile(Reads(), backend="aot_eager")(x), x @ run[0][0].weight.t())
    torch._dynamo.reset()


def test_a_closure_is_one_step() -> None:
    one, two = started("width", model=mlp(6, 9, 8, 3)), started("width", model=mlp(6, 9, 8, 3))
    for number in range(9):
        step_on(one[0], one[1], number)

        def closure(number: int = number) -> Tensor:
            two[1].zero_grad()
            loss = loss_of(two[0], data(number, 6))
            loss.backward()
            return loss

        two[1].step(closure)
    assert same(one[0], two[0]) and one[2].units_moved


def test_in_half_precision_the_budget_and_the_function_hold() -> None:
    model = mlp(6, 16, 12, 3, dtype=torch.bfloat16, act=nn.GELU)
    seen: list[Tensor] = []
    x = data(1, 6, dtype=torch.bfloat16)
    method = WidthMethod("growing", want=methods.width().want, held=realloc.schedule.linear(0.3, 1.0), window=1)
    optimizer, handle = attached(
        method, model, gap=2, total=8, lr=0.0, before_move=lambda: seen.append(model(x).detach())
    )
    for number in range(8):
        step_on(model, optimizer, number)
        assert handle.held + handle.parked == handle.budget
        assert number < 2 or torch.allclose(model(x), seen[-1], rtol=0, atol=2e-2)
    assert handle.units_moved >= 5 and model(x).dtype == torch.bfloat16


def test_two_models_of_different_dtypes_of_layers_share_one_budget() -> None:
    """Pools by dtype; a unit between them has a part in both."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 10, 9, 3)
            self.net[4].float().register_forward_pre_hook(lambda _, args: args[0].float())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).double()

    model = Mixed()
    optimizer, handle = attached(methods.random_widths(drop=0.4, mature=0), model, gap=1, total=8)
    assert len(handle._holdings.wide) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(8):
            step_on(model, optimizer, number)
            assert handle.held + handle.parked == handle.budget
    assert handle.units_moved and DOUBLE in {p.dtype for p in model.parameters()}
