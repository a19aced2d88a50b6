"""What a decision is shown of each group, and every score of units, beside autograd of a plain model."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wide_nets import attached, cnn, data, loss_of, mlp, shape_of, step_on

import realloc
from realloc import methods
from realloc.grow.split import split
from realloc.methods.width_method import WidthMethod
from realloc.schedule import constant
from realloc.scores.neuron_activity import neuron_activity
from realloc.scores.neuron_effect import neuron_effect
from realloc.scores.neuron_gain import neuron_gain
from realloc.scores.neuron_magnitude import neuron_magnitude
from realloc.scores.neuron_mean import neuron_mean
from realloc.scores.neuron_random import neuron_random, want_neuron_random
from realloc.scores.neuron_utility import neuron_utility
from realloc.scores.neurons import Neurons, WidthKeep

DRAW = torch.Generator()


def shown(model: nn.Module, steps: int, window: int = 1, parts: int = 1) -> tuple[list[Neurons], nn.Module]:
    """What the decision at step ``steps`` is shown, and the plain model that its gradients are of."""
    seen: list[Neurons] = []

    def note(group: Neurons, generator: torch.Generator) -> Tensor:
        copied = dataclasses.replace(group, worth=group.worth.clone(), age=group.age.clone())
        seen.append(copied)
        return torch.zeros(group.width)

    keep = WidthKeep("noted", frozenset({"worth", "outputs"}), note)
    grow = dataclasses.replace(methods.gradmax().grow, products=isinstance(model[1], nn.ReLU))
    method = WidthMethod("noting", keep=keep, want=neuron_mean, grow=grow, window=window)
    optimizer, _ = attached(method, model, gap=steps, total=2 * steps, optimizer=torch.optim.SGD, lr=0.0)
    plain = realloc.export.dense(model)
    shape = shape_of(model)
    for number in range(steps):
        optimizer.zero_grad()
        for part in data(number, *shape).chunk(parts):
            (loss_of(model, part) / parts).backward()
        optimizer.step()
    return seen, plain


@pytest.mark.parametrize("parts", [1, 4])
def test_what_is_shown_of_a_chain(parts: int) -> None:
    groups, plain = shown(mlp(5, 9, 8, 3), 2, parts=parts)
    x = data(1, 5)
    for part in x.chunk(parts):
        (loss_of(plain, part) / parts).backward()
    for group, layer, reader in zip(groups, (0, 2), (2, 4), strict=True):
        h = plain[: layer + 2](x).detach()
        assert (group.name, group.width, group.least, group.most) == (str(layer), h.shape[1], 1, 4 * h.shape[1])
        assert group.price == plain[layer].in_features + 1 + plain[reader].out_features
        assert torch.allclose(group.outputs, h.abs().mean(0), rtol=1e-12)
        assert torch.allclose(dict(group.means)[f"{reader}.weight"].flatten(), h.mean(0), rtol=1e-12)
        weight = plain[reader].weight
        effect = (weight * weight.grad).sum(0).detach()
        assert torch.allclose(group.worth, effect.square(), rtol=1e-9)
        assert torch.allclose(neuron_effect.measure(group, DRAW), effect.abs(), rtol=1e-9)
        assert group.age.tolist() == [2] * group.width and group.active
        inputs = plain[:layer](x).detach() if layer else x
        below = plain[: reader + 1](x)
        gy = torch.autograd.grad((plain[reader + 1 :](below) - x[:, :3] * x[:, -3:]).square().mean(), below)[0]
        assert torch.allclose(group.products, gy.t() @ inputs, rtol=1e-9, atol=1e-15)
        wanted = torch.linalg.svdvals(gy.t() @ inputs).square()
        got = neuron_gain.measure(group, torch.zeros(0), 12, DRAW)
        assert torch.allclose(got[: len(wanted)], wanted[:12], rtol=1e-9) and not got[len(wanted) :].any()


def test_an_effect_is_the_slope_of_the_loss_as_a_unit_goes() -> None:
    """By finite differences: outputs of one unit scaled by 1 - t."""
    groups, plain = shown(mlp(5, 7, 3), 1)
    x, t = data(0, 5), 1e-6
    base = float(loss_of(plain, x).detach())
    for unit in range(7):
        with torch.no_grad():
            kept = plain[2].weight[:, unit].clone()
            plain[2].weight[:, unit] *= 1 - t
            slope = (float(loss_of(plain, x).detach()) - base) / t
            plain[2].weight[:, unit] = kept
        assert float(neuron_effect.measure(groups[0], DRAW)[unit]) == pytest.approx(abs(slope), rel=1e-4, abs=1e-9)


def test_effects_are_summed_over_the_window_and_no_further() -> None:
    groups, plain = shown(mlp(5, 7, 3), 6, window=3)
    total = torch.zeros(7, dtype=torch.float64)
    for number in (3, 4, 5):
        plain.zero_grad()
        loss_of(plain, data(number, 5)).backward()
        total += (plain[2].weight * plain[2].weight.grad).sum(0).detach().square()
    assert torch.allclose(groups[0].worth, total, rtol=1e-9) and groups[0].seen == 3
    assert torch.allclose(neuron_effect.measure(groups[0], DRAW), (total / 3).sqrt(), rtol=1e-9)


def test_what_is_shown_of_channels() -> None:
    """Convolutions, norms and a flattened reader: means over rows and positions."""
    groups, plain = shown(cnn(4, 5, 6), 1)
    x = data(0, *shape_of(plain))
    plain.train()
    loss_of(plain, x).backward()
    first, second = groups[0], groups[1]
    h = plain[:3](x)
    assert torch.allclose(first.outputs, h.abs().mean((0, 2, 3)), rtol=1e-9)
    assert torch.allclose(dict(first.means)["3.weight"].flatten(), h.mean((0, 2, 3)), rtol=1e-9)
    weight = plain[3].weight
    assert torch.allclose(first.worth, (weight * weight.grad).sum((0, 2, 3)).square(), rtol=1e-9)
    assert [part.name for part in first.norms] == ["1.weight", "1.bias"]
    h = plain[:6](x)
    assert torch.allclose(dict(second.means)["7.weight"], h.mean(0).flatten(1), rtol=1e-9)  # each position by itself
    assert torch.allclose(second.outputs, h.abs().mean((0, 2, 3)), rtol=1e-9)
    weight = plain[7].weight
    effect = (weight * weight.grad).sum(0).view(5, 4).sum(1)
    assert torch.allclose(second.worth, effect.square(), rtol=1e-9)
    assert second.price == 9 * 4 + 2 + 4 * 6


def test_an_image_without_its_batch_is_seen_as_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)).double()
    seen: list[Any] = []

    def note(group: Neurons, generator: torch.Generator) -> Tensor:
        seen.append(group.outputs)
        return torch.zeros(4)

    keep = WidthKeep("noted", frozenset({"outputs"}), note)
    optimizer, _ = attached(WidthMethod("noting", keep=keep, want=neuron_mean), model, gap=1, total=2, lr=0.0)
    x = data(0, 2, 6, 5, rows=1)[0]
    with torch.no_grad():
        expected = model[:2](x).abs().mean((1, 2))
    model(x).square().sum().backward()
    optimizer.step()
    assert torch.allclose(seen[0], expected, rtol=1e-9)


def test_sizes_activities_and_utilities_by_hand() -> None:
    groups, plain = shown(mlp(5, 7, 3), 1)
    group, x = groups[0], data(0, 5)
    w, b, v = plain[0].weight.detach(), plain[0].bias.detach(), plain[2].weight.detach()
    h = plain[:2](x).detach()
    for unit in range(7):
        size = float(((w[unit] ** 2).sum() + b[unit] ** 2).sqrt() * (v[:, unit] ** 2).sum().sqrt())
        assert float(neuron_magnitude.measure(group, DRAW)[unit]) == pytest.approx(size)
        activity = float(h[:, unit].abs().mean() / h.abs().mean())
        assert float(neuron_activity.measure(group, DRAW)[unit]) == pytest.approx(activity)
        utility = float(h[:, unit].abs().mean() * v[:, unit].abs().sum() / w[unit].abs().mean())
        assert float(neuron_utility.measure(group, DRAW)[unit]) == pytest.approx(utility)
    scaled = dataclasses.replace(
        group,
        makers=tuple(dataclasses.replace(part, values=4.0 * part.values) for part in group.makers),
        readers=tuple(dataclasses.replace(part, values=part.values / 4.0) for part in group.readers),
    )
    assert torch.allclose(neuron_magnitude.measure(scaled, DRAW), neuron_magnitude.measure(group, DRAW))


def test_the_factor_of_a_norm_says_how_large_a_unit_is() -> None:
    groups, plain = shown(mlp(5, 7, 6, 3, norm=True), 1)
    before = neuron_magnitude.measure(groups[0], DRAW)
    factor = dataclasses.replace(groups[0].norms[0], values=3.0 * groups[0].norms[0].values)
    louder = dataclasses.replace(groups[0], norms=(factor, groups[0].norms[1]))
    assert torch.allclose(neuron_magnitude.measure(louder, DRAW), 3.0 * before) and plain is not None


def test_of_several_norms_the_root_mean_square_counts() -> None:
    """A residual stream has a norm in every block; one of them is not its size."""
    groups, _ = shown(mlp(5, 7, 6, 3, norm=True), 1)
    weight, bias = groups[0].norms
    alone = neuron_magnitude.measure(groups[0], DRAW)
    factors = [torch.full_like(weight.values, factor) for factor in (1.0, 7.0)]
    both = [dataclasses.replace(weight, name=f"{n}.weight", values=one) for n, one in enumerate(factors)]
    several = dataclasses.replace(groups[0], norms=(both[0], bias, both[1], bias))
    assert torch.allclose(neuron_magnitude.measure(several, DRAW), 5.0 * alone)  # the root of (1 + 49) / 2


def test_a_utility_is_by_all_weights_that_make_a_unit() -> None:
    """As of a head: queries, keys and values; of a gated block: gate and value."""
    groups, _ = shown(mlp(5, 7, 3), 1)
    weight, bias = groups[0].makers
    second = torch.arange(1.0, 7 * 5 + 1, dtype=torch.float64).view(7, 5)
    gated = dataclasses.replace(groups[0], makers=(weight, bias, dataclasses.replace(weight, values=second)))
    before, now = (neuron_utility.measure(group, DRAW) for group in (groups[0], gated))
    made, other = weight.values.abs().mean(1), second.mean(1)
    assert torch.allclose(now, before * made / ((made + other) / 2))


def test_wants_by_hand() -> None:
    group = shown(mlp(5, 7, 3), 1)[0][0]
    kept = torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)
    assert neuron_mean.measure(group, kept, 3, DRAW).tolist() == pytest.approx([6 / 4, 6 / 5, 6 / 6])
    chance = want_neuron_random.measure(group, kept, 50, torch.Generator().manual_seed(1))
    assert bool((chance.diff() <= 0).all()) and float(chance[-1]) >= 0 and float(chance[0]) <= group.price
    again = want_neuron_random.measure(group, kept, 50, torch.Generator().manual_seed(1))
    worth = neuron_random.measure(group, torch.Generator().manual_seed(1))
    assert torch.equal(chance, again) and worth.shape == (7,) and float(worth.max()) <= group.price


def test_what_was_not_seen_is_said() -> None:
    group = dataclasses.replace(shown(mlp(5, 7, 3), 1)[0][0], outputs=None, products=None, worth=None)
    for score in (neuron_activity, neuron_utility, neuron_effect):
        with pytest.raises(realloc.errors.StateError, match=r"0: its (outputs|worth) w(ere|as) not"):
            score.measure(group, DRAW)
    with pytest.raises(realloc.errors.StateError, match="products of input and output gradient were not seen"):
        neuron_gain.measure(group, torch.zeros(0), 2, DRAW)


# decisions --------------------------------------------------------------------------------------------------------


def test_redo_recycles_exactly_the_units_below_its_threshold() -> None:
    model = mlp(5, 20, 3)
    with torch.no_grad():
        model[0].bias[:6] = -50.0  # dead
        model[0].bias[6:9] -= 1.0
    optimizer, handle = attached(methods.redo(0.1), model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    plain, x = realloc.export.dense(model), data(0, 5)
    activity = plain[:2](x).detach().abs().mean(0)
    dormant = activity <= 0.1 * activity.mean()
    step_on(model, optimizer, 0)
    assert handle.units_moved == int(dormant.sum()) >= 6
    dense = realloc.export.dense(model)
    assert torch.equal(dense[0].weight[: int((~dormant).sum())], plain[0].weight[~dormant])
    new = dense[0].weight.detach()[int((~dormant).sum()) :]
    assert float(new.abs().max()) <= 5**-0.5 and not dense[2].weight[:, len(new) * -1 :].any()


def test_a_young_unit_stays() -> None:
    model = mlp(5, 20, 3)
    method = methods.continual_backprop(0.25, mature=4)
    optimizer, handle = attached(method, model, gap=2, total=20)
    born = []
    for number in range(12):
        step_on(model, optimizer, number)
        born.append(handle._holdings.wide[0].units("born")[0].clone())
    assert handle.moves == 5  # at step 2 nobody is old enough
    for before, after in pairwise(born):
        gone = torch.bincount(before, minlength=20) - torch.bincount(after, minlength=20)
        for step in range(13):
            if int(gone[step]) > 0:
                assert int(after.max()) - step >= 4, "a unit went before its time"
    assert sorted(set(born[-1].tolist())) != [0]


@pytest.mark.parametrize("begin", [0, 7])
def test_fractions_of_a_unit_add_up_over_moves_and_a_resume_knows_them(begin: int) -> None:
    """0.04 of 20 units: four at five moves, and a run that goes on from any of them makes the same."""

    def started(at: int) -> Any:
        model = mlp(5, 20, 3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        method = methods.continual_backprop(0.04, mature=0)
        handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, begin=begin, total=60), seed=at)
        return model, optimizer, handle

    model, optimizer, handle = started(0)
    moved, states = [], []
    for number in range(begin + 20):
        states.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
        step_on(model, optimizer, number)
        moved.append(handle.units_moved)
    assert [moved[begin + 2 * n - 1] for n in range(1, 11)] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    for at in (begin + 2, begin + 5, begin + 12):
        again, other, mine = started(9)
        again.load_state_dict(states[at][0])
        other.load_state_dict(states[at][1])
        for number in range(at, begin + 20):
            step_on(again, other, number)
            assert mine.units_moved == moved[number]


def test_a_share_is_of_units_that_may_go_and_never_of_all() -> None:
    """Of those that are old enough, as published; 0.29 of 100 is 29; and one unit stays where they are copied."""
    model = mlp(5, 100, 3)
    optimizer, handle = attached(methods.continual_backprop(0.29, mature=2), model, gap=2, total=20)
    moved = [0]
    for number in range(6):
        step_on(model, optimizer, number)
        moved.append(handle.units_moved)
    assert moved[2] == 29 and moved[4] - moved[2] == 29
    method = WidthMethod("all", keep=neuron_magnitude, want=neuron_mean, drop=constant(0.99), within=True, grow=split)
    model = mlp(5, 4, 3)
    optimizer, handle = attached(method, model, gap=1, total=20)
    for number in range(6):
        step_on(model, optimizer, number)
    assert handle.units_moved == 6 * 3
