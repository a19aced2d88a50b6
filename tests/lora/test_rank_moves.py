"""Moves of ranks: the budget in parameters, moments against Adam by hand, growth without a jump, cuts with one."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import DOUBLE, Events, batch, made, net, step_on
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError
from realloc.methods.rank_method import RankMethod
from realloc.record.checkpoint import load_latest, save
from realloc.record.state import pack, unpack
from realloc.schedule import cosine
from realloc.scores.held_ranks import RankKeep
from realloc.scores.rank_random import want_random

METHODS = {
    "random_ranks": methods.random_ranks, "adalora": methods.adalora, "para": methods.para,
    "rank_gradient": methods.rank_gradient, "lora": methods.lora,
}  # fmt: skip


def layers_of(handle: realloc.Handle) -> dict[str, torch.Tensor]:
    """What each layer's ranks add to its weight."""
    found = {}
    for name, site in handle.sites.items():
        a, b = site.factors()
        found[name] = site.scale * b.t() @ a
    return found


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": model[int(name)].weight.detach() for name in ("0", "2")}


# the budget -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*RA003")  # a budget of one rank moves nothing
@given(
    name=st.sampled_from([*METHODS]),
    sizes=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    budget=st.integers(1, 400),
    scale=st.floats(0.1, 4.0),
    seed=st.integers(0, 1000),
    at_most=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_the_budget_is_exact_in_parameters(name, sizes, budget, scale, seed, at_most):
    model = net(sizes=(6, *sizes, 4))
    method = METHODS[name](budget=budget, scale=scale)
    method = method.at_most() if at_most else method
    try:
        model, optimizer, handle = made(method, model=model, gap=1, total=8, seed=seed)
    except ConfigError as error:
        assert "below one rank" in str(error) or "do not fit" in str(error)
        assert not any(n.startswith("realloc") for n in net(sizes=(6, *sizes, 4)).state_dict())
        return
    most = handle.budget
    assert most == budget or (not at_most and name in ("adalora", "para"))
    for number in range(8):
        step_on(model, optimizer, number)
        ranks = [site.rank for site in handle.sites.values()]
        assert handle.held == sum(r * sum(s.shape) for r, s in zip(ranks, handle.sites.values(), strict=True))
        assert handle.held + handle.parked == handle.budget == most == model.realloc_pool0.numel()
        assert all(0 <= r <= s.cap for r, s in zip(ranks, handle.sites.values(), strict=True))
        parked = model.realloc_pool0.detach()[handle.held :]
        assert not parked.any(), "a parked slot is not zero"
    if name in ("adalora", "para"):
        assert handle.held <= budget


def test_what_is_left_pays_for_no_rank_that_has_room():
    model, optimizer, handle = made(methods.random_ranks(budget=150, cap=9), gap=1)
    for number in range(20):
        step_on(model, optimizer, number)
        assert handle.parked < 24, "the dearer layer's rank was affordable and has room"


def test_ranks_grow_and_shrink_across_layers_of_different_cost():
    model, optimizer, handle = made(methods.random_ranks(rank=3, drop=0.5), gap=1)
    seen = set()
    for number in range(20):
        step_on(model, optimizer, number)
        seen.add(tuple(site.rank for site in handle.sites.values()))
    assert len(seen) >= 3


# moments ----------------------------------------------------------------------------------------------------------


def by_place(site, tensor: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    a, b = site.parts_of(tensor)
    return {place: (a[i].clone(), b[i].clone()) for i, place in enumerate(site.places().tolist())}


def adam(value, gradient, state, step, lr=1e-2, decay=0.01):
    """AdamW, one vector, written out."""
    mean, square = state
    mean = 0.9 * mean + 0.1 * gradient
    square = 0.999 * square + 0.001 * gradient**2
    size = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return value * (1 - lr * decay) - lr * size, (mean, square)


def test_moments_of_moved_ranks_are_those_of_adam_by_hand():
    model, optimizer, handle = made(methods.random_ranks(rank=3, drop=0.4), gap=2)
    values, states, sites, pool = {}, {}, handle.sites, model.realloc_pool0
    moved = 0
    for step in range(1, 16):
        before = {n: by_place(s, pool.detach()) for n, s in sites.items()}
        optimizer.zero_grad()
        x, y = batch(step)
        (model(x) - y).square().mean().backward()
        grads = {n: by_place(s, pool.grad) for n, s in sites.items()}
        for name, mine in before.items():
            for place, pair in mine.items():
                known = values.get((name, place))
                if known is not None:
                    assert all(map(torch.equal, known, pair))
                zero = [(torch.zeros_like(v), torch.zeros_like(v)) for v in pair]
                old = states.get((name, place), zero)
                done = [adam(v, g, s, step) for v, g, s in zip(pair, grads[name][place], old, strict=True)]
                states[name, place] = [d[1] for d in done]
                values[name, place] = tuple(d[0] for d in done)
        optimizer.step()
        moments = optimizer.state[pool]
        for name, site in sites.items():
            now, first = by_place(site, pool.detach()), by_place(site, moments["exp_avg"])
            second = by_place(site, moments["exp_avg_sq"])
            for place in {p for n, p in values if n == name} - now.keys():
                del values[name, place], states[name, place]  # released, forgotten
            for place, pair in now.items():
                if (name, place) in values and torch.allclose(pair[1], values[name, place][1], rtol=0, atol=1e-12):
                    for i in (0, 1):
                        assert torch.allclose(pair[i], values[name, place][i], rtol=0, atol=1e-12)
                        assert torch.allclose(first[place][i], states[name, place][i][0], rtol=0, atol=1e-14)
                        assert torch.allclose(second[place][i], states[name, place][i][1], rtol=0, atol=1e-16)
                    values[name, place] = pair
                else:
                    moved += 1
                    assert not pair[1].any() and not first[place][0].any() and not second[place][1].any()
                    values[name, place] = pair
                    states.pop((name, place), None)
    assert moved >= 6
    parked = {k: v[handle.held :] for k, v in optimizer.state[pool].items() if v.shape == pool.shape}
    assert not any(v.any() for v in parked.values())


# growth and cuts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_growth_leaves_the_function(dtype):
    x, seen = batch(99, dtype)[0], []
    method = methods.rank_gradient(rank=4, start=0.25)
    model, optimizer, handle = made(
        method, model=net(dtype), gap=3, total=30, before_move=lambda m: seen.append(m(x).detach())
    )
    grown = 0
    for number in range(30):
        held = handle.held
        step_on(model, optimizer, number)
        assert torch.allclose(model(x), seen[-1], rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
        grown += handle.held > held
    assert grown >= 3 and handle.held > 0.9 * handle.budget


def test_ranks_that_came_evenly_are_explained_by_no_score():
    model, optimizer, handle = made(methods.rank_gradient(rank=4, start=0.25, margin=1e6), gap=3, total=9)
    for number in range(9):
        step_on(model, optimizer, number)
    words = "".join(handle.explain(name) for name in handle.sites)
    assert "+1); uniform: the gradients of this batch do not tell the layers apart" in words and "up came" not in words


def test_what_is_given_up_is_in_the_summary():
    model, optimizer, handle = made(methods.adalora(rank=3), gap=2, total=8)
    held = handle.held
    for number in range(8):
        step_on(model, optimizer, number)
    assert handle.moves and not handle.units_moved and handle.held < held
    assert f"0 units moved and {held - handle.held:,} weights released for good in 8 steps" in handle.summary()


def test_new_ranks_start_as_peft_starts_them_and_as_the_seed_says():
    one, two = made(methods.lora(rank=4))[2], made(methods.lora(rank=4))[2]
    other = made(methods.lora(rank=4), seed=1)[2]
    a, b = one.sites["2.weight"].factors()
    assert not b.any() and float(a.abs().max()) <= 1 / 10**0.5 and float(a.std()) > 0.1
    assert torch.equal(a, two.sites["2.weight"].factors()[0])
    assert not torch.equal(a, other.sites["2.weight"].factors()[0])


def test_a_cut_reports_the_jump_of_the_weight():
    events, seen = Events(), []
    model, optimizer, handle = made(
        methods.adalora(rank=3), gap=2, total=12, record=events, before_move=lambda m: seen.append(weights_of(m))
    )
    cuts = 0
    for number in range(12):
        step_on(model, optimizer, number)
        if not (number % 2):
            continue
        for name, line in events[-1]["sites"].items():
            if line["released"]:
                cuts += 1
                lost = seen[-1][name] - weights_of(model)[name]
                assert line["jump"] == pytest.approx(float(lost.norm()), rel=1e-9, abs=1e-12)
            else:
                assert "jump" not in line
    assert cuts >= 2 and "jumped by" in handle.explain("0") + handle.explain("2")


def test_para_keeps_the_best_approximation_the_budget_pays_for():
    model, optimizer, handle = made(methods.para(rank=2, start=2.0), gap=10, total=10)
    for number in range(9):
        step_on(model, optimizer, number)
    # the last step is made twice: in a run without a move, and in this one
    twin, other, mine = made(methods.lora(rank=4), gap=10, total=10)
    for number in range(10):
        step_on(twin, other, number)
    whole = layers_of(mine)
    step_on(model, optimizer, 9)
    assert handle.moves == 1 and handle.held <= 80 < 160 == handle.budget
    spectra = {name: torch.linalg.svdvals(part) for name, part in whole.items()}
    for name, part in layers_of(handle).items():
        left, values, right = torch.linalg.svd(whole[name], full_matrices=False)
        rank = handle.sites[name].rank
        best = left[:, :rank] * values[:rank] @ right[:rank]
        assert torch.allclose(part, best, rtol=0, atol=1e-10)
    # no affordable exchange would keep more: the cut values are worth less per parameter than those kept
    kept = [float(spectra[n][s.rank - 1]) ** 2 / sum(s.shape) for n, s in handle.sites.items() if s.rank]
    cut = [float(spectra[n][s.rank]) ** 2 / sum(s.shape) for n, s in handle.sites.items() if s.rank < 4]
    assert max(cut) <= min(kept) + 1e-15 or handle.parked - 80 < 24


def test_adalora_shrinks_for_real_and_compact_gives_the_memory_back():
    model, optimizer, handle = made(methods.adalora(rank=4), gap=2, total=20)
    assert handle.budget == 240
    ranks = []
    for number in range(20):
        step_on(model, optimizer, number)
        ranks.append(sum(site.rank for site in handle.sites.values()))
    assert ranks == sorted(ranks, reverse=True) and handle.held <= 160
    freed = handle.compact()
    assert freed == 240 - handle.budget and handle.parked == 0
    assert model.realloc_pool0.numel() == handle.held == handle.budget
    means = [b for n, b in model.named_buffers() if "sensitivity" in n or "uncertainty" in n]
    assert len(means) == 2 and all(m.shape == model.realloc_pool0.shape for m in means)
    step_on(model, optimizer, 20)


def test_layers_too_narrow_for_the_start_still_end_at_the_budget():
    model, optimizer, handle = made(methods.adalora(rank=4, start=3.0), gap=2, total=20)
    assert [site.rank for site in handle.sites.values()] == [6, 10] and handle.budget == 6 * 16 + 10 * 24
    for number in range(20):
        step_on(model, optimizer, number)
    assert 4 * (16 + 24) - 24 < handle.held <= 4 * (16 + 24)


def test_adaloras_means_are_those_of_the_paper():
    model, optimizer, handle = made(methods.adalora(rank=2, beta1=0.7, beta2=0.6), gap=50, total=50)
    mean = spread = torch.zeros_like(model.realloc_pool0.detach())
    for number in range(5):
        optimizer.zero_grad()
        x, y = batch(number)
        (model(x) - y).square().mean().backward()
        gradient = model.realloc_pool0.grad.clone()
        optimizer.step()
        now = (model.realloc_pool0.detach() * gradient).abs()
        mean = 0.7 * mean + 0.3 * now
        spread = 0.6 * spread + 0.4 * (now - mean).abs()
    assert torch.allclose(model.realloc_sensitivity0, mean, rtol=1e-9, atol=1e-18)
    assert torch.allclose(model.realloc_uncertainty0, spread, rtol=1e-9, atol=1e-18)
    assert handle.moves == 0


def test_the_rank_with_no_sensitivity_goes_first():
    model, optimizer, handle = made(methods.adalora(rank=2), gap=4, total=4)
    with torch.no_grad():  # a rank whose A and B are zero is never sensitive and never will be
        for part in handle.sites["0.weight"].factors():
            part[1] = 0.0
    for number in range(4):
        step_on(model, optimizer, number)
    assert 1 not in handle.sites["0.weight"].places().tolist()


# resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*METHODS])
@pytest.mark.parametrize("stop", [3, 4, 10])
def test_resume_is_bit_equal(name, stop):
    method = METHODS[name](rank=3)
    straight, optimizer, handle = made(method, total=16)
    for number in range(16):
        step_on(straight, optimizer, number)
    stopped, other, _ = made(method, total=16)
    for number in range(stop):
        step_on(stopped, other, number)
    disk = io.BytesIO()
    torch.save((stopped.state_dict(), other.state_dict()), disk)
    disk.seek(0)
    model_state, optimizer_state = torch.load(disk, weights_only=True)
    again, third, handle_again = made(method, total=16, seed=99)
    again.load_state_dict(model_state)
    third.load_state_dict(optimizer_state)
    for number in range(stop, 16):
        step_on(again, third, number)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert handle_again.moves == handle.moves


def test_nan_moves_nothing():
    model, optimizer, handle = made(methods.random_ranks(rank=3), gap=2)
    step_on(model, optimizer, 0)
    before = [site.places().tolist() for site in handle.sites.values()]
    with pytest.warns(realloc.errors.ReallocWarning, match="RA001"):
        step_on(model, optimizer, 1, scale=float("nan"))
    assert [site.places().tolist() for site in handle.sites.values()] == before
    assert handle.held + handle.parked == handle.budget


def test_a_layer_that_took_no_part_keeps_its_ranks():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
            self.both = True

        def forward(self, x):
            x = self.one(x)
            return self.head(self.two(x) if self.both else x)

    torch.manual_seed(0)
    model, optimizer, handle = made(methods.adalora(rank=2, start=3.0), model=Two().to(DOUBLE), gap=2, total=8)
    step_on(model, optimizer, 0)
    model.both = False
    before = [part.clone() for part in handle.sites["two.weight"].factors()]
    for number in range(1, 4):
        step_on(model, optimizer, number)
    assert handle.sites["two.weight"].rank == 6 and handle.sites["one.weight"].rank < 6
    assert all(map(torch.equal, handle.sites["two.weight"].factors(), before))


def test_an_averaged_copy_follows():
    model, optimizer, handle = made(methods.random_ranks(rank=3), gap=1)
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda old, new, _: new)
    handle.follow(average)
    for number in range(6):
        step_on(model, optimizer, number)
        average.update_parameters(model)
        x = batch(50)[0]
        assert torch.equal(average(x), model(x))
    assert handle.moves >= 3


def test_a_strangers_method():
    keep = RankKeep("size", lambda site, generator: site.b.square().sum(1).double() / site.cost)
    method = RankMethod("by_size", rank=3, keep=keep, want=want_random, drop=cosine(0.4))
    model, optimizer, handle = made(method, gap=1, total=10)
    for number in range(10):
        step_on(model, optimizer, number)
    assert handle.moves and handle.held + handle.parked == handle.budget


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_it_resumes_from_a_run_folder_under_any_elementwise_optimizer(name, tmp_path):
    method = methods.random_ranks(rank=3)

    def start(seed: int):
        model = net()
        realloc.prepare(model, method, seed=seed)
        optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
        return (
            model,
            optimizer,
            realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=12), seed=seed),
        )

    straight, optimizer, handle = start(0)
    for number in range(12):
        step_on(straight, optimizer, number)
        if number == 4:
            packed = pack(straight, optimizer, {})
            save(tmp_path, 5, packed.tensors, packed.state)
    again, other, mine = start(9)
    found = load_latest(tmp_path)
    assert found is not None and found.step == 5
    unpack(found.tensors, found.state, again, other)
    for number in range(5, 12):
        step_on(again, other, number)
    assert mine.moves == handle.moves >= 2
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in straight.state_dict().items())
