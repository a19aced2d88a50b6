"""Budgets, promises, resume, prepare and detach, refusals."""

from __future__ import annotations

import copy
import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tabular import HIDDEN, INPUTS, SITE, made, net, rows, step_on
from torch import nn

import realloc
from kinds import COLUMNS
from realloc import methods
from realloc.errors import ConfigError, ReallocWarning
from realloc.methods.column_method import ColumnMethod
from realloc.testing import PROMISES, check_method


@pytest.mark.parametrize("name", COLUMNS)
def test_every_method_keeps_its_promises(name):
    recipe = getattr(methods, name)
    report = check_method(lambda density: recipe(round(density * 16)).at(SITE, 16), density=0.25)
    assert [promise for promise, _ in report.lines] == [promise for promise, _ in PROMISES]


@pytest.mark.parametrize("name", ["rigl", "gse", "snfs"])
def test_methods_of_weights_move_whole_columns_too(name):
    check_method(lambda density: getattr(methods, name)(density).on(block="column"))


def test_columns_of_several_layers_lie_in_a_pool_for_each_width():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method = methods.rigl(0.5, drop=0.5).on("*", block="column")
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(4, total=30))
    assert "2 separate pools" in str(handle.start)
    for step in range(12):
        step_on(model, optimizer, step)
        assert handle.held == handle.budget == 6 * HIDDEN + 4 * 3
    assert handle.moves


@pytest.mark.filterwarnings(r"ignore:\[RA003\]")  # where every input is held, nothing can move, and it says so
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_budget_is_exact_whatever_is_asked(data):
    inputs, hidden = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    k, gap = data.draw(st.integers(1, inputs)), data.draw(st.integers(1, 5))
    share = data.draw(st.floats(0.05, 1.0))
    method = data.draw(
        st.sampled_from([
            lambda: methods.entryprune(k, candidates=share), lambda: methods.neurofs(k, start=share, drop=0.5),
            lambda: methods.quickselection(k), lambda: methods.random_columns(k),
        ])
    )()  # fmt: skip
    model = net(inputs, hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    try:
        handle = realloc.attach(model, optimizer, method, schedule=realloc.every(gap, until=0.8, total=12))
    except ConfigError as error:
        assert "candidates is" in str(error) and share * (inputs - k) < 1
        return
    budget = handle.budget
    assert budget % hidden == 0 and k <= budget // hidden <= inputs
    for step in range(12):
        step_on(model, optimizer, step, inputs)
        places = handle.sites[SITE].places()
        assert handle.held + handle.parked == handle.budget == budget
        assert handle.held == places.numel() * hidden and bool((places.diff() > 0).all())
        assert k <= places.numel() and (places.numel() == 0 or int(places[-1]) < inputs)
    assert handle.held == k * hidden
    assert handle.sites[SITE].mask().any(0).sum() == k


@pytest.mark.parametrize("stop", [3, 6, 13, 21])
@pytest.mark.parametrize("name", COLUMNS)
def test_a_resume_goes_on_bit_for_bit(name, stop):
    recipe = getattr(methods, name)
    model, optimizer, _ = made(recipe(3), seed=1)
    for step in range(stop):
        step_on(model, optimizer, step)
    disk = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), disk)
    for step in range(stop, 26):
        step_on(model, optimizer, step)
    disk.seek(0)
    again, other, _ = made(recipe(3), seed=2)
    for part, state in zip((again, other), torch.load(disk, weights_only=True), strict=True):
        part.load_state_dict(state)
    for step in range(stop, 26):
        step_on(again, other, step)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("name", COLUMNS)
def test_prepared_first_it_is_the_same_run(name):
    method = getattr(methods, name)(3)
    one, first, handle = made(method)
    two = net()
    table = realloc.prepare(two, method)
    assert f"{3 if name == 'random_columns' else len(handle.sites[SITE].places())} of 12 input columns" in str(table)
    second = made(method, two)[1]
    for step in range(10):
        assert step_on(one, first, step) == pytest.approx(step_on(two, second, step), rel=1e-12)
    with pytest.raises(ConfigError, match=r"prepared for .* at 3 inputs, attach got .* at 4 inputs"):
        prepared = net()
        realloc.prepare(prepared, method)
        made(getattr(methods, name)(4), prepared)


@pytest.mark.filterwarnings(r"ignore:\[RA00[13]\]")  # the skipped decision says so
@pytest.mark.parametrize("name", ["entryprune", "neurofs", "quickselection"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_last_decision_that_was_skipped_is_made_up_for(name, resumed):
    """K inputs are the promise: a NaN in the one step that ends the schedule must not leave more of them for good."""
    recipe = getattr(methods, name)
    model, optimizer, handle = made(recipe(3), schedule=realloc.every(4, until=12, total=30))
    for step in range(11):
        step_on(model, optimizer, step)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    x, y = rows(11)
    optimizer.zero_grad()
    (torch.nn.functional.cross_entropy(model(x), y) * float("nan")).backward()
    optimizer.step()
    assert handle.steps == 12 and handle.held > 3 * HIDDEN
    with torch.no_grad():  # the user takes the broken step back
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": {}})
    if resumed:
        states = [part.state_dict() for part in (model, optimizer)]
        model, optimizer, handle = made(recipe(3), schedule=realloc.every(4, until=12, total=30), seed=2)
        for part, state in zip((model, optimizer), states, strict=True):
            part.load_state_dict(state)
    for step in range(12, 22):
        step_on(model, optimizer, step)
        assert handle.held + handle.parked == handle.budget
        assert step < 15 or handle.held == 3 * HIDDEN
    assert handle.sites[SITE].places().numel() == 3


def test_sequences_train_columns_as_their_rows_do():
    """Inputs of [B, T, D] are B * T rows: the same moves and the same weights."""
    runs = [made(methods.entryprune(3, candidates=0.4)) for _ in range(2)]
    for step in range(1, 25):
        x, _ = rows(step)
        for (model, optimizer, _), shape in zip(runs, ((24, INPUTS), (4, 6, INPUTS)), strict=True):
            optimizer.zero_grad()
            model(x.view(shape)).square().mean().backward()
            optimizer.step()
    (one, _, first), (two, _, second) = runs
    assert first.moves == second.moves > 2 and first.held == 3 * HIDDEN
    assert torch.equal(first.sites[SITE].places(), second.sites[SITE].places())
    assert torch.allclose(one[0].weight, two[0].weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("k", [1, INPUTS])
@pytest.mark.filterwarnings(r"ignore:\[RA003\]")  # where every input is kept, nothing can move
def test_one_input_and_all_of_them(name, k):
    model, optimizer, handle = made(getattr(methods, name)(k))
    for step in range(26):
        step_on(model, optimizer, step)
    assert handle.sites[SITE].places().numel() == k and handle.held + handle.parked == handle.budget


def test_micro_batches_are_one_batch_and_a_scaled_loss_moves_the_same_columns():
    runs = [made(methods.entryprune(3, candidates=0.4)) for _ in range(3)]
    for step in range(1, 25):
        x, y = rows(step)
        for (model, optimizer, _), parts, factor in zip(runs, (1, 3, 1), (1.0, 1.0, 1024.0), strict=True):
            optimizer.zero_grad()
            for some, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (factor * torch.nn.functional.cross_entropy(model(some), labels) / parts).backward()
            optimizer.step()
    places = [handle.sites[SITE].places().tolist() for *_, handle in runs]
    assert places[0] == places[1] == places[2] and runs[0][2].moves > 2


def test_a_scaler_that_skips_leaves_no_impression():
    runs = [made(methods.entryprune(3, candidates=0.4), net().float()) for _ in range(2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    for step in range(1, 25):
        x, y = (part.float() if part.is_floating_point() else part for part in rows(step))
        for (model, optimizer, _), broken in zip(runs, (step % 5 == 2, False), strict=True):
            if broken:
                optimizer.zero_grad()
                scaler.scale(torch.nn.functional.cross_entropy(model(x), y) * float("inf")).backward()
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            if model is runs[0][0]:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
    places = [handle.sites[SITE].places().tolist() for *_, handle in runs]
    assert places[0] == places[1] and runs[0][2].steps == 24


def test_autocast_trains_columns():
    model, optimizer, handle = made(methods.entryprune(3, candidates=0.4), net().float())
    for step in range(1, 25):
        x, y = rows(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x.float()).float(), y)
        loss.backward()
        optimizer.step()
    assert handle.held == 3 * HIDDEN and bool(model[0].weight.isfinite().all())


@pytest.mark.parametrize("name", COLUMNS)
def test_a_part_of_the_inputs_is_rounded_down(name):
    """Also where a float would fall short of the whole number."""
    recipe = getattr(methods, name)
    assert [round(recipe("29%").at(SITE, n).density * n) for n in (100, 99, 12)] == [29, 28, 3]
    handle = made(recipe("100%"))[2]
    assert handle.budget == INPUTS * HIDDEN and handle.start.asked == "100% of the inputs"


def test_detached_it_is_a_plain_layer_with_zero_columns():
    model, optimizer, handle = made(methods.entryprune(3))
    for step in range(24):
        step_on(model, optimizer, step)
    held, x = handle.sites[SITE].places(), rows(99)[0]
    assert handle.sites[SITE].compute == "gather" and handle.state()["held"] == 3 * HIDDEN
    handle.compact()
    assert handle.budget == handle.held == 3 * HIDDEN
    wanted, plain = model(x).detach(), realloc.export.dense(model)
    handle.detach()
    for again in (model, plain):
        assert torch.allclose(again(x), wanted, rtol=0, atol=1e-13) and type(again[0]) is nn.Linear
        assert again[0].weight.any(0).nonzero().flatten().tolist() == held.tolist()
    assert [*model.state_dict()] == [*net().state_dict()]
    step_on(model, optimizer, 24)


def test_a_compiled_model_moves_as_a_plain_one():
    plain, first, _ = made(methods.entryprune(3, candidates=0.4))
    model, second, handle = made(methods.entryprune(3, candidates=0.4))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in range(12):
        assert step_on(compiled, second, step) == pytest.approx(step_on(plain, first, step), rel=1e-12)
    assert handle.moves == 3 and torch.equal(model.realloc_columns0, plain.realloc_columns0)


def test_which_layer():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(INPUTS), nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, 3))
    made(methods.random_columns(2), model.double(), schedule=None)
    assert model[2].realloc_site.held == 16 and type(model[4]) is nn.Linear
    model = net()
    made(methods.quickselection(2).on("2"), model)
    assert model[2].realloc_site.grid.columns == 8 and type(model[0]) is nn.Linear
    alone = nn.Linear(INPUTS, 1).double()
    handle = made(methods.random_columns(2), alone, schedule=None)[2]
    assert alone(rows(0)[0]).shape == (24, 1) and handle.held == 2


class Upside(nn.Module):
    """Declares last what it calls first."""

    def __init__(self):
        super().__init__()
        self.head, self.norm, self.body = nn.Linear(8, 3), nn.BatchNorm1d(INPUTS), nn.Linear(INPUTS, 8)

    def forward(self, x):
        return self.head(self.body(self.norm(x)).relu())


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_a_layer_that_does_not_see_the_input_is_told(storage):
    model = Upside().double()
    method = replace(methods.entryprune(3), storage=storage)
    _, optimizer, handle = made(method, model)
    with torch.no_grad():
        model(rows(0)[0])
    with pytest.warns(ReallocWarning, match="RA007.*head.weight does not see the input"):
        step_on(model, optimizer, 0)
    step_on(model, optimizer, 1)  # said once
    other = copy.deepcopy(model)
    other(rows(0)[0])
    assert not model.head._forward_pre_hooks and torch.save(other, io.BytesIO()) is None
    handle.detach()
    named = Upside().double()
    step_on(named, made(method.on("body", storage=storage), named)[1], 0)  # a norm before it mixes nothing
    fits = nn.Sequential(nn.BatchNorm1d(INPUTS), *net()).double()
    optimizer = made(method, fits)[1]
    assert torch.save(fits, io.BytesIO()) is None  # before its first forward, too
    step_on(fits, optimizer, 0)


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(8, 3)


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("act", "word"),
    [
        (lambda: methods.entryprune(0), "k is 0; it is a number of inputs: an integer of 1 or more"),
        (lambda: methods.neurofs(2.5), "k is 2.5; "),
        (lambda: methods.random_columns(True), "k is True; "),
        (lambda: methods.columns("10"), "k is '10'; .* such as '10%'"),
        (lambda: methods.columns("101%"), "k is '101%'"),
        (lambda: methods.columns("nan%"), "k is 'nan%'"),
        (lambda: methods.columns(3, score="strength"), "score is 'strength'.*; use one of impression, magnitude"),
        (lambda: made(methods.columns("8%")), "k is '8%', less than one of the 12 inputs of 0.weight; use k from 1"),
        (lambda: methods.entryprune(3, candidates=0), r"candidates is 0; .* \(0, 1\]"),
        (lambda: methods.entryprune(3, candidates=float("nan")), "candidates is nan"),
        (lambda: methods.neurofs(3, start=2), "start is 2"),
        (lambda: methods.neurofs(3, drop=1.0).at(SITE, 12), "drop is 1.0"),
        (lambda: made(methods.quickselection(13)), "k is 13, but 0.weight has 12 inputs; use k from 1 to 12"),
        (lambda: made(methods.entryprune(10, candidates=0.3)), "less than one of the 2 inputs.*at least 0.5"),
        (lambda: made(methods.neurofs(2), Cnn()), "'conv', a Conv2d, first: a convolution.*on\\('fc'\\)"),
        (lambda: made(methods.neurofs(2), words()), "'0', a Embedding, first: an embedding.*on\\('1'\\)"),
        (lambda: made(methods.neurofs(2), nn.Conv1d(1, 1, 1)), "Conv1d, first"),
        (lambda: made(methods.neurofs(2), nn.Sequential(nn.BatchNorm1d(3))), "has no nn.Linear"),
        (lambda: made(methods.neurofs(2).on("3")), "no layer '3'"),
        (lambda: made(methods.neurofs(2).on("1")), "'1' is a ReLU"),
        (lambda: methods.neurofs(2).on(0), "layer is 0"),
        (lambda: methods.neurofs(2).on("0", storage="flat"), "storage is 'flat'"),
        (lambda: made(methods.neurofs(2), schedule=None), "schedule is None"),
        (lambda: methods.rigl(0.5).on(block="row"), "block is 'row'; .*'column'"),
        (lambda: ColumnMethod("odd", 2, rule=lambda k, inputs: methods.rigl(0.5)).at("fc", 12), "density 0.5.*2 of 12"),
        (lambda: ColumnMethod("odd", 2, rule=lambda k, inputs: None).at("fc", 12), "made None"),
        (
            lambda: realloc.prepare(net(), methods.rigl(0.5).on("*", block="column", storage="masked")),
            r"columns of masked layers have \[3, 8\] weights",
        ),
        (
            lambda: realloc.prepare(Cnn(), methods.rigl(0.5).on("conv", block="column")),
            "conv.weight is no plain nn.Linear weight and has no input columns",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_met_with_the_remedy(act, word):
    with pytest.raises(ConfigError, match=word):
        act()


def test_a_refusal_changes_nothing():
    model = net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError):
        made(methods.entryprune(13), model)
    assert [*before] == [*model.state_dict()] and type(model[0]) is nn.Linear
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
