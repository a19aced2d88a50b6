"""Deltas that move: against SpIEL written out, the budget in parameters, growth without a jump, resume at any step."""

from __future__ import annotations

import io

import pytest
import torch
from frozen import DOUBLE, Events, Plain, batch, dense_of, made, net, step_on
from hypothesis import given, settings
from hypothesis import strategies as st

import realloc
from kinds import DELTAS
from realloc import methods
from realloc.errors import ConfigError
from realloc.methods.delta_method import DeltaMethod
from realloc.record.checkpoint import load_latest, save
from realloc.record.state import pack, unpack
from realloc.testing import check_method

RULES = {
    "spiel": lambda n: methods.spiel(budget=n, drop=0.4, steps=3),
    "shira": lambda n: methods.shira(budget=n),
    "largest": lambda n: methods.shira(budget=n, by="magnitude"),
    "rigl": lambda n: DeltaMethod("rigl_delta", rule=methods.rigl, budget=n),
    "gse": lambda n: DeltaMethod("gse_delta", rule=methods.gse, budget=n),
    "snfs": lambda n: DeltaMethod("snfs_delta", rule=methods.snfs, budget=n),
}


@pytest.mark.parametrize("name", DELTAS)
def test_the_rule_keeps_its_promises_over_whole_weights_too(name):
    report = check_method(getattr(methods, name)(budget=1).rule)
    assert report.method == name


@pytest.mark.filterwarnings("ignore:.*RA003")  # a small budget moves nothing
@given(
    budget=st.integers(1, 199), window=st.integers(2, 6), gap=st.integers(1, 6), drop=st.floats(0.0, 0.95),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_spiel_is_spiel_written_out(budget, window, gap, drop, seed):
    """Places, values, moments and jumps at every step."""
    total, events = 18, Events()
    method = methods.spiel(budget=budget, drop=drop, steps=window)
    model, optimizer, handle = made(method, gap=gap, total=total, seed=seed, record=events, weight_decay=0.1)
    sites = [handle.sites[f"{i}.weight"] for i in (0, 2)]
    plain = Plain(
        net(), {i: s.mask() for i, s in zip((0, 2), sites, strict=True)}, window=window, gap=gap, total=total, drop=drop
    )
    pool = model.realloc_pool0
    for number in range(total):
        step_on(model, optimizer, number)
        plain.step(number)
        assert handle.held == handle.budget == budget == pool.numel()
        for site, layer in zip(sites, plain.layers, strict=True):
            assert torch.equal(site.mask(), layer.held), number + 1
            assert torch.allclose(dense_of(site, pool), layer.delta.detach(), rtol=0, atol=1e-11)
            for key in ("exp_avg", "exp_avg_sq"):
                mine, wanted = dense_of(site, optimizer.state[pool][key]), plain.optimizer.state[layer.delta][key]
                assert torch.allclose(mine, wanted, rtol=1e-8, atol=1e-14), (key, number + 1)
    jumps = [line.get("jump", 0.0) for event in events for line in event["sites"].values()]
    assert jumps == pytest.approx(plain.jumps, rel=1e-8, abs=1e-12)


@pytest.mark.filterwarnings("ignore:.*RA003")
@given(
    name=st.sampled_from([*RULES]), sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    budget=st.integers(1, 250), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_budget_is_exact_in_parameters(name, sizes, budget, seed):
    model = net(sizes=(6, *sizes, 4))
    try:
        model, optimizer, handle = made(RULES[name](budget), model=model, gap=2, total=10, seed=seed)
    except ConfigError as error:
        assert "give 1 to" in str(error) and not any("realloc" in n for n, _ in model.named_parameters())
        return
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    for number in range(10):
        step_on(model, optimizer, number)
        sites = handle.sites.values()
        assert sum(len(s.places()) for s in sites) == handle.held == handle.budget == budget
        assert model.realloc_pool0.numel() == budget and handle.parked == 0
        assert all((s.places().diff() > 0).all() and s.held <= s.capacity for s in sites)
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in frozen.items()), "a frozen weight moved"


def test_the_budget_crosses_layers():
    model, optimizer, handle = made(methods.spiel(budget=60, drop=0.6, steps=2), gap=2)
    seen = set()
    for number in range(20):
        step_on(model, optimizer, number)
        seen.add(tuple(site.held for site in handle.sites.values()))
    assert len(seen) >= 3 and handle.moves >= 5 and "jumped by" in handle.explain("0") + handle.explain("2")


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_move_changes_the_function_by_what_it_says_and_growth_by_nothing(dtype):
    events, weights = Events(), []

    def look(model):
        weights.append({f"{i}.weight": model[i].weight.detach().clone() for i in (0, 2)})

    model, optimizer, _ = made(
        methods.spiel(budget=40, drop=0.5, steps=2), model=net(dtype), gap=2, record=events, before_move=look
    )
    x = batch(99, dtype)[0]
    plain = net(dtype)
    assert torch.equal(model(x), plain(x)), "a delta of zeros is no change"
    for number in range(16):
        step_on(model, optimizer, number)
        if number % 2:
            for name, line in events[-1]["sites"].items():
                change = weights[-1][name] - model[int(name[0])].weight.detach()
                assert float(change.norm()) == pytest.approx(line.get("jump", 0.0), rel=1e-4, abs=1e-7)
                grown = line["acquired"] - line["released"]
                assert grown == line["after"] - line["before"]


@pytest.mark.parametrize("name", ["spiel", "snfs", "gse"])
@given(stop=st.integers(1, 15))
@settings(max_examples=8, deadline=None)
def test_it_resumes_bit_equal_from_any_step(name, stop):
    """Also in the middle of the steps that a move looks at."""
    straight, optimizer, handle = made(RULES[name](60), gap=4, total=16)
    disk = io.BytesIO()
    for number in range(16):
        step_on(straight, optimizer, number)
        if number + 1 == stop:
            torch.save((straight.state_dict(), optimizer.state_dict()), disk)
    disk.seek(0)
    model, moments = torch.load(disk, weights_only=True)
    again, other, mine = made(RULES[name](60), gap=4, total=16, seed=9)
    again.load_state_dict(model)
    other.load_state_dict(moments)
    for number in range(stop, 16):
        step_on(again, other, number)
    assert mine.moves == handle.moves >= 2
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in straight.state_dict().items())


def test_it_resumes_from_a_run_folder(tmp_path):
    straight, optimizer, handle = made(RULES["spiel"](60), total=16)
    for number in range(16):
        step_on(straight, optimizer, number)
        if number == 9:
            packed = pack(straight, optimizer, {})
            save(tmp_path, 10, packed.tensors, packed.state)
    again, other, mine = made(RULES["spiel"](60), total=16, seed=9)
    found = load_latest(tmp_path)
    assert found is not None and found.step == 10
    unpack(found.tensors, found.state, again, other)
    for number in range(10, 16):
        step_on(again, other, number)
    assert mine.moves == handle.moves >= 2
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in straight.state_dict().items())


def test_nan_moves_nothing_and_what_was_collected_is_forgotten():
    model, optimizer, handle = made(methods.spiel(budget=50, steps=3), gap=4)
    for number in range(3):
        step_on(model, optimizer, number)
    book = model.realloc_collected0.clone()
    assert int(book[-1]) == 2
    before = [site.places().tolist() for site in handle.sites.values()]
    with pytest.warns(realloc.errors.ReallocWarning, match="RA001"):
        step_on(model, optimizer, 3, scale=float("nan"))
    assert [site.places().tolist() for site in handle.sites.values()] == before
    assert handle.held == handle.budget == 50 and int(model.realloc_collected0[-1]) == 0


def test_an_averaged_copy_follows():
    model, optimizer, handle = made(RULES["spiel"](60), gap=3)
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda old, new, _: new)
    handle.follow(average)
    for number in range(9):
        step_on(model, optimizer, number)
        average.update_parameters(model)
        x = batch(50)[0]
        assert torch.equal(average(x), model(x))
    assert handle.moves >= 2


def test_micro_batches_move_as_one_batch():
    one, first, a = made(RULES["spiel"](60), gap=3)
    two, second, b = made(RULES["spiel"](60), gap=3)
    for number in range(12):
        step_on(one, first, number)
        second.zero_grad()
        x, y = batch(number)
        for part, wanted in zip(x.chunk(3), y.chunk(3), strict=True):
            ((two(part) - wanted).square().sum() / y.numel()).backward()
        second.step()
        assert all(torch.equal(a.mask(n), b.mask(n)) for n in a.sites)
    assert a.moves >= 3
