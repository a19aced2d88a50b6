"""Which dimensions are found in chains, and what is refused: the thing, the value, the remedy, before anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from wide_nets import DOUBLE, attached, cnn, data, mlp, step_on, widths

import realloc
from realloc import methods
from realloc.choose_widths import choose_widths
from realloc.errors import ConfigError, StateError
from realloc.find_widths import chains
from realloc.grow.gradmax import gradmax
from realloc.methods.width_method import WidthMethod
from realloc.schedule import constant, linear

EVERY = realloc.every(2, total=20)


def conv(a: int, b: int, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, **settings)


# chains -----------------------------------------------------------------------------------------------------------

shared = nn.Linear(6, 6)
SQUARE = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.GELU(), nn.Dropout(0.1), nn.Linear(5, 2)), [("0", 5, 1)]),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), nn.Sequential(nn.Linear(5, 2))), [("0.0", 5, 1)]),
        (nn.Sequential(conv(2, 4), nn.MaxPool2d(2), conv(4, 3)), [("0", 4, 1)]),
        (nn.Sequential(conv(2, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)), [("0", 4, 4)]),
        (nn.Sequential(conv(2, 4), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)), [("0", 4, 1)]),
        (nn.ModuleDict({"a": SQUARE, "b": mlp(4, 5, 3)}), [("a.0", 8, 1), ("b.0", 5, 1)]),
    ],
)
def test_chains_that_are_found(model: nn.Module, found: list[tuple[str, int, int]]) -> None:
    every = chains(model)
    assert [(one.name, one.width, one.readers[0].block) for one in every.found] == found and not every.others


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(15, 2)), "reads 15 inputs, which are not its 5 units"),
        (nn.Sequential(conv(2, 6), nn.Linear(6, 3)), "reads 6 inputs, which are not its 6 units"),
        (nn.Sequential(conv(2, 6), nn.Flatten(2), nn.Linear(6, 3)), "followed by 1, a Flatten"),
        (nn.Sequential(nn.Linear(6, 4), conv(4, 3)), "reads 4 inputs, which are not its 4 units"),
        (nn.Sequential(nn.Linear(6, 4), nn.MaxPool2d(2), nn.Linear(4, 3)), "followed by 1, a MaxPool2d"),
        (nn.Sequential(nn.Linear(6, 4), nn.Softmax(1), nn.Linear(4, 3)), "followed by 1, a Softmax"),
        (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), "followed by 1, a LayerNorm"),
        (
            nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)),
            "followed by 1, a BatchNorm1d",
        ),
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm2d(4), nn.Linear(4, 3)), "followed by 1, a BatchNorm2d"),
        (nn.Sequential(conv(2, 4), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)), "followed by 2, a BatchNorm1d"),
        (nn.Sequential(conv(2, 4), conv(4, 4, groups=2), conv(4, 3)), "followed by 1, a Conv2d"),
        (nn.Sequential(nn.Linear(6, 6), shared, nn.ReLU(), shared, nn.Linear(6, 3)), "stands in the model twice"),
        (nn.Sequential(SQUARE, nn.ReLU(), SQUARE), "stands in the model twice"),
    ],
)
def test_chains_that_cannot_move_say_why(model: nn.Module, word: str) -> None:
    every = chains(model)
    assert any(word in why for _, why in every.others), every.others
    for one in every.found:  # what is found beside it is sound: its reader has its units and nothing else
        for side in one.readers:
            weight = side.module.weight
            assert weight.shape[1] == one.width * side.block


class Tower(nn.Sequential):
    """As torchvision makes them: an nn.Sequential with a name."""


class Doubled(nn.Sequential):
    """Not in turn: the sum of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self)


def test_a_subclass_of_sequential_is_run_through_unless_it_has_a_forward_of_its_own() -> None:
    one, two = Tower(nn.Linear(4, 5), nn.ReLU()), mlp(5, 7, 2)
    assert [found.name for found in chains(nn.Sequential(one, two)).found] == ["0.0", "1.0"]
    assert [found.name for found in chains(Tower(mlp(4, 5, 2))).found] == ["0.0"]
    every = chains(Doubled(mlp(4, 5, 4), mlp(4, 6, 4), nn.Linear(4, 4)))
    assert [found.name for found in every.found] == ["0.0", "1.0"]  # each by itself, and nothing across


def test_a_weight_that_is_computed_is_no_parameter() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    assert [one.name for one in chains(model).found] == ["2"]
    pruned = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    with pytest.raises(ConfigError, match="no hidden dimension of this model can move"):
        realloc.prepare(pruned, methods.width())


def test_an_activation_with_parameters_is_known_to_nobody_and_stops_nobody() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, activation=nn.PReLU())
    space = choose_widths(layer, methods.width()).space
    assert space.groups == ("linear1",) and space.levels == (None,)
    with pytest.raises(ConfigError, match="linear1 is not so: leave it out"):
        choose_widths(layer, methods.gradmax())
    wide = nn.TransformerEncoderLayer(8, 2, 12, activation=nn.PReLU(12))
    with pytest.raises(ConfigError, match="its PReLU has a parameter for each unit, which would not follow"):
        choose_widths(wide, methods.width())


def test_an_activation_that_takes_no_other_numbers_stops_nobody() -> None:
    def single(x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return x.relu()

    layer = nn.TransformerEncoderLayer(8, 2, 12, activation=single)
    assert choose_widths(layer, methods.width()).space.levels == (None,)
    with pytest.raises(ConfigError, match="linear1 is not so: leave it out"):
        choose_widths(layer, methods.gradmax())


# what is refused --------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 5, 5, 3)
        self.other = nn.Linear(5, 5).to(DOUBLE)
        self.other.weight = self.net[2].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.other(self.net[0](x)).sum(1, keepdim=True)


def changed(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = mlp(6, 12, 10, 3)
    change(model)
    return model


CNN = data(0, 2, 6, 6, rows=1)
REFUSED: list[tuple[Callable[[], nn.Module], Callable[[], WidthMethod], str]] = [
    (lambda: nn.Sequential(nn.Linear(6, 3)), methods.width,
     r"no hidden dimension of this model can move; build it of nn\.Sequential.*on\(example=inputs\)"),
    (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), methods.width,
     r"can move \(0: it is followed by 1, a LayerNorm, which is not known here\); build it"),
    (lambda: mlp(6, 12, 10, 3), lambda: methods.width().on("fc*"), r"no hidden dimension matches 'fc\*'"),
    (lambda: nn.ModuleDict({"tower": mlp(6, 12, 10, 3)}), lambda: methods.width().on("towre.0"),
     r"matches 'towre\.0'; nearest: 'tower\.0'"),
    (lambda: mlp(6, 12, 10, 3), lambda: methods.width().on(exclude=("7",)), "no hidden dimension matches '7'"),
    (lambda: mlp(6, 12, 10, 3), lambda: methods.width().on("0\x1b[2J"), r"matches '0\[2J'"),
    (lambda: mlp(6, 12, 10, 3), lambda: methods.width().on(exclude=("*",)),
     "every hidden dimension of this model is left out: 0, 2; exclude fewer"),
    (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
     lambda: methods.width().on("0"), "the width of '0' cannot move: it is followed by 1, a LayerNorm.*name other"),
    (lambda: mlp(6, 12, 10, 3), lambda: methods.width().on(least=11), "least=11 is above the 10 units of 2; lower it"),
    (lambda: mlp(6, 12, 10, 3), lambda: methods.narrow(0.01),
     r"may spend 2 parameters at the end, and one unit in each of 2 groups.* costs 12; raise its share to 0\.049"),
    (lambda: mlp(6, 12, 10, 3), lambda: methods.narrow(0.2).on(least=8),
     "8 units in each of 2 groups.*raise its share to.*or lower least"),
    (lambda: changed(lambda m: m[2].requires_grad_(False)), methods.width,
     r"2\.weight is frozen; thaw it, or exclude its layer"),
    (lambda: changed(lambda m: m[2].bias.requires_grad_(False)), methods.width, r"2\.bias is frozen"),
    (lambda: changed(lambda m: m[2].weight.data.fill_(float("nan"))), methods.width,
     r"2\.weight has NaN or Inf; initialise or load it"),
    (lambda: mlp(6, 12, 10, 3).to("meta"), methods.width, r"0\.weight is on the meta device; load or initialise"),
    (Tied, methods.width, r"net\.2\.weight is shared with other\.weight; exclude the layer"),
    (lambda: cnn(), lambda: methods.width(currency="FLOPs"),
     r"FLOPs of a convolution depend on the size of its output; give method\.on\(example=inputs\)"),
    (lambda: cnn(), methods.gradmax, r"gradmax finds new units by gradient.*no norm; 0 is not so: leave it out with"),
    (lambda: cnn(bias=True), lambda: methods.gradmax().on("3"), "; 3 is not so: leave it out"),
    (lambda: mlp(6, 12, 10, 3, bias=False), methods.gradmax, r"0 is not so: leave it out with on\(exclude=\('0',\)\)"),
    (lambda: mlp(6, 12, 10, 3, norm=True), methods.gradmax, "0 is not so"),
    (lambda: changed(lambda m: m[4].register_parameter("bias", None)), methods.gradmax, "; 2 is not so"),
    (lambda: changed(lambda m: m[4].bias.requires_grad_(False)), methods.gradmax, "; 2 is not so"),
    (lambda: cnn(), lambda: dataclasses.replace(methods.width(), grow=gradmax), "width finds new units by gradient"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "method", "word"), REFUSED)
@pytest.mark.parametrize("way", ["prepare", "attach"])
def test_refused_before_anything_changed(
    way: str, model: Callable[[], nn.Module], method: Callable[[], WidthMethod], word: str
) -> None:
    net = model()
    parameters = [id(p) for p in net.parameters()]
    keys, types = [*net.state_dict()], [type(m) for m in net.modules()]
    with pytest.raises(ConfigError, match=word) as caught:
        if way == "prepare":
            realloc.prepare(net, method())
        else:
            realloc.attach(net, torch.optim.AdamW(net.parameters()), method(), schedule=EVERY)
    assert "\x1b" not in str(caught.value)
    assert [id(p) for p in net.parameters()] == parameters and [*net.state_dict()] == keys
    assert [type(m) for m in net.modules()] == types and not net._forward_hooks


def test_gradmax_takes_the_layers_that_it_can() -> None:
    model = cnn()
    optimizer, handle = attached(methods.gradmax(drop=0.3, mature=0).on("7"), model, gap=1, total=4)
    for number in range(3):
        step_on(model, optimizer, number)
    assert [*widths(handle)] == ["7"]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: methods.width(drop=1.0), r"drop is 1\.0; it is a share of what is held: 0 <= drop < 1, such as 0\.1"),
        (lambda: methods.width(drop=True), "drop is True"),
        (lambda: methods.random_widths(drop=-0.1), r"drop is -0\.1"),
        (lambda: methods.morphnet(drop=float("nan")), "drop is nan; it is a share"),
        (lambda: methods.gradmax(drop=2), "drop is 2; it is a share"),
        (lambda: methods.gradmax(drop="0.1"), r"drop is '0\.1'; it is a share"),
        (lambda: methods.continual_backprop(1.0), r"share is 1\.0; it is a share of what is held"),
        (lambda: methods.width(window=0), "window is 0; use a whole number from 1 on"),
        (lambda: methods.width(mature=-1), "mature is -1; use a whole number from 0 on"),
        (lambda: methods.width(mature=2.5), r"mature is 2\.5"),
        (lambda: methods.width(currency="bytes"), "currency is 'bytes'; use 'parameters' or 'FLOPs'"),
        (lambda: methods.narrow(0.0), r"share is 0\.0; it is the part of the start's cost that stays: 0 < share <= 1"),
        (lambda: methods.narrow(1.5), r"share is 1\.5"),
        (lambda: methods.narrow(True), "share is True"),
        (lambda: methods.redo(-0.1), r"threshold is -0\.1; it is a multiple of a layer's mean output, 0 or more"),
        (lambda: methods.redo(float("nan")), "threshold is nan"),
        (lambda: methods.redo("0.1"), r"threshold is '0\.1'"),
        (lambda: methods.width().on(exclude="fc"), r"exclude is the string 'fc'; use a tuple of patterns: \('fc',\)"),
        (lambda: methods.width().on(least=0), "least is 0; use a whole number from 1 on"),
        (lambda: methods.width().on(least=True), "least is True"),
        (lambda: methods.width().on(most=0.5), r"most is 0\.5; it is a multiple of a group's start width, 1 or more"),
        (lambda: methods.width().on(most=float("inf")), "most is inf"),
        (
            lambda: WidthMethod("mine", held=linear(1.0, 0.0)),
            r"held is 0\.0; it is a share of the start: 0 < held <= 1",
        ),
        (lambda: WidthMethod("mine", drop=constant(1.0)), r"drop is 1\.0"),
    ],
)
def test_bad_settings_are_refused_where_they_are_made(make: Callable[[], Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make()


def test_an_optimizer_that_is_not_elementwise_is_refused_with_a_remedy_that_helps() -> None:
    model = mlp(6, 12, 10, 3)
    with pytest.raises(ConfigError, match=r"optimizer Adafactor cannot share a pool.*such as AdamW or SGD") as caught:
        realloc.attach(model, torch.optim.Adafactor(model.parameters()), methods.width(), schedule=EVERY)
    assert "masked" not in str(caught.value) and [*model.state_dict()] == [*mlp(6, 12, 10, 3).state_dict()]
    realloc.prepare(model, methods.width())
    with pytest.raises(ConfigError, match=r"Adafactor cannot share a pool") as caught:
        realloc.attach(model, torch.optim.Adafactor(model.parameters()), methods.width(), schedule=EVERY)
    assert "masked" not in str(caught.value)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model = mlp(6, 12, 10, 3)
    early = torch.optim.AdamW(model.parameters())
    with pytest.raises(ConfigError, match=r"does not hold '0\.weight'"):
        realloc.attach(model, torch.optim.AdamW(mlp(2, 2).parameters()), methods.width(), schedule=EVERY)
    with pytest.raises(ConfigError, match=r"does not hold '2\.weight'"):
        realloc.attach(model, torch.optim.AdamW(model[0].parameters()), methods.width(), schedule=EVERY)
    realloc.prepare(model, methods.width())
    with pytest.raises(ConfigError, match="does not hold the pool of this prepared model"):
        realloc.attach(model, early, methods.width(), schedule=EVERY)


def test_twice_and_with_another_method_is_refused() -> None:
    model = mlp(6, 12, 10, 3)
    realloc.prepare(model, methods.narrow(0.5))
    with pytest.raises(StateError, match="prepared already"):
        realloc.prepare(model, methods.narrow(0.5))
    optimizer = torch.optim.AdamW(model.parameters())
    for other in (methods.narrow(0.4), methods.width(), methods.narrow(0.5, currency="FLOPs"), methods.rigl(0.5)):
        with pytest.raises(ConfigError, match="prepared for narrow"):
            realloc.attach(model, optimizer, other, schedule=EVERY)
    realloc.attach(model, optimizer, methods.narrow(0.5), schedule=EVERY)
    with pytest.raises(StateError, match=r"attached already|serves an attached model"):
        realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.narrow(0.5), schedule=EVERY)


def test_a_method_that_moves_needs_a_schedule_and_one_that_does_not_needs_none() -> None:
    model = mlp(6, 12, 10, 3)
    with pytest.raises(ConfigError, match="schedule is None"):
        realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.width())
    realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.uniform_widths())


def test_a_parameter_that_is_set_on_a_wide_layer_is_refused_by_torch() -> None:
    model = mlp(6, 12, 10, 3)
    realloc.prepare(model, methods.width())
    with pytest.raises(KeyError, match="weight"):
        model[0].weight = nn.Parameter(torch.zeros(12, 6))


def test_patterns_take_and_leave_groups() -> None:
    model = nn.ModuleDict({"a": mlp(6, 12, 10, 3), "b": mlp(6, 5, 3)})
    for method, names in (
        (methods.width().on("a.*"), ("a.0", "a.2")), (methods.width().on("*.0"), ("a.0", "b.0")),
        (methods.width().on(exclude=("a.0", "b*")), ("a.2",)),
    ):  # fmt: skip
        assert choose_widths(model, method).space.groups == names
    space = choose_widths(model, methods.width().on(least=2, most=1.5)).space
    assert space.least == (2, 2, 2) and space.most == (18, 15, 7)
