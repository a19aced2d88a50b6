"""Coupled dimensions of any model, found by torch-pruning's graph: what moves, what is refused, what tracing leaves."""

from __future__ import annotations

import copy
import gc
import math
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from wide_nets import DOUBLE, IMAGE, Beside, attached, cnn, data, loss_of, mlp, noted_moves, output, step_on, widths

import realloc
from realloc import methods
from realloc.choose_widths import choose_widths
from realloc.errors import ConfigError
from realloc.grow.split import split
from realloc.grow.zero_output import zero_output
from realloc.methods.width_method import WidthMethod
from realloc.schedule import linear
from realloc.scores.neuron_random import neuron_random

pytest.importorskip("torch_pruning")
X = data(0, *IMAGE, rows=2)


class Residual(nn.Module):
    """A stream of channels that two blocks read and add to, without biases; then a wider stage."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.bn1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.two, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.bn3 = nn.Conv2d(8, 10, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(10)
        self.short = nn.Conv2d(8, 10, 1, stride=2, bias=False)
        self.head = nn.Linear(10 * 9, 3)
        self.to(DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.norm(self.stem(x)))
        x = relu(x + self.bn2(self.two(relu(self.bn1(self.one(x))))))
        x = relu(self.bn3(self.down(x)) + self.short(x))
        return self.head(x.flatten(1))


class Stream(nn.Module):
    """Residual linear layers: each reads and makes the same dimension. Registered from the end to the beginning."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(9, 3)
        self.second, self.hidden, self.first = nn.Linear(7, 9), nn.Linear(9, 7), nn.Linear(9, 9)
        self.stem = nn.Linear(6, 9)
        self.to(DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + relu(self.first(x))
        x = x + self.second(relu(self.hidden(x)))
        return self.head(relu(x))


def on(method: WidthMethod, example: Any, *layers: str) -> WidthMethod:
    return method.on(*layers, example=example)


def moving() -> WidthMethod:
    return methods.random_widths(drop=0.4, mature=0)


# what the tracer leaves -------------------------------------------------------------------------------------------


def test_tracing_changes_nothing_of_the_model() -> None:
    model = Residual().train()
    model.bn2.eval()
    model.head.bias.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    ids = [id(p) for p in model.parameters()]
    torch.manual_seed(7)
    stream = torch.get_rng_state()
    table = realloc.prepare(model, on(moving(), X), dry_run=True)
    assert torch.equal(torch.get_rng_state(), stream)
    assert modes == {name: module.training for name, module in model.named_modules()} and not model.bn2.training
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert ids == [id(p) for p in model.parameters()] and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert "one: 6 units" in str(table) and "stem+two: 8 units" in str(table) and "down+short: 10 units" in str(table)


def test_the_graph_is_gone_when_prepare_returns() -> None:
    """Else it holds the old weights, and a warning says that the user does."""
    model = Residual()
    old = weakref.ref(model.one.weight)
    gc.disable()
    try:
        realloc.prepare(model, on(moving(), X))
        assert old() is None
    finally:
        gc.enable()


# what moves -------------------------------------------------------------------------------------------------------


def test_a_residual_stream_moves_and_the_export_is_equal() -> None:
    model = Residual()
    optimizer, handle = attached(on(moving(), X), model, gap=2, total=20)
    assert widths(handle) == {"stem+two": 8, "one": 6, "down+short": 10}
    seen = []
    for number in range(20):
        step_on(model, optimizer, number)
        plain = realloc.export.dense(model)
        assert handle.held == sum(plain.get_parameter(name).numel() for name in handle.sites)
        assert handle.held + handle.parked == handle.budget
        seen.append(tuple(widths(handle).values()))
        assert plain.stem.weight.shape[0] == plain.two.weight.shape[0] == plain.bn2.num_features == seen[-1][0]
        assert plain.head.in_features == 9 * seen[-1][2]
    assert len({one[0] for one in seen}) > 2 and len({one[2] for one in seen}) > 2
    x = data(9, *IMAGE)
    assert torch.equal(plain.eval()(x), model.eval()(x))
    model.train()
    handle.detach()
    assert [*model.state_dict()] == [*Residual().state_dict()]
    assert step_on(model, optimizer, 30) > step_on(model, optimizer, 30)


@pytest.mark.filterwarnings("ignore:.*RA00")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", [zero_output, split], ids=["zero_output", "split"])
@pytest.mark.parametrize("make", [Residual, Stream])
def test_growth_keeps_the_function(make: Any, rule: Any, training: bool) -> None:
    model, seen = make(), list[Tensor]()
    shape = IMAGE if make is Residual else (6,)
    x = data(5, *shape)

    def look() -> Tensor:
        return output(model, x, training)

    want = methods.random_widths().want
    method = WidthMethod("growing", keep=neuron_random, want=want, grow=rule, held=linear(0.1, 1.0))
    optimizer, handle = attached(
        on(method, data(0, *shape, rows=2)), model, gap=1, total=4, lr=0.0, optimizer=torch.optim.SGD,
        before_move=lambda: seen.append(look()),
    )  # fmt: skip
    grown = dict.fromkeys(widths(handle), 0)
    for number in range(4):
        before = widths(handle)
        optimizer.zero_grad()
        model(data(number, *shape)).square().mean().backward()
        optimizer.step()
        if number:
            assert torch.allclose(look(), seen[-1], rtol=0, atol=1e-10), f"step {number + 1}: the function jumped"
            for name, width in widths(handle).items():
                grown[name] += width - before[name]
    assert all(count >= 1 for count in grown.values()), grown


def test_every_entry_that_stays_is_trained_as_by_torch(monkeypatch: Any) -> None:
    """Also of a weight whose rows and columns are the same dimension, and of norms on a shared stream."""
    for model, shape in ((Stream(), (6,)), (Residual(), IMAGE)):
        moves = noted_moves(monkeypatch)
        method = WidthMethod(
            "moving", keep=neuron_random, want=methods.random_widths().want, drop=linear(0.4, 0.4), compensate=False
        )
        optimizer, handle = attached(on(method, data(0, *shape, rows=2)), model, gap=2, total=10)
        beside, came = Beside(handle, torch.optim.AdamW, 1e-2), 0
        optimizer.register_step_pre_hook(lambda *_, beside=beside: beside.step())
        for number in range(10):
            optimizer.zero_grad()
            loss_of(model, data(number, *shape)).backward()
            before = len(moves)
            optimizer.step()
            if len(moves) > before:
                came += beside.move(moves[-1][1])
            beside.same(optimizer)
        assert handle.moves >= 4 and came >= 100
        monkeypatch.undo()


def test_only_the_norm_right_behind_is_shifted(monkeypatch: Any) -> None:
    """Three norms lie on the stream; a channel of the block gives to the one behind its reader."""
    model, moves, kept = Residual(), noted_moves(monkeypatch), list[dict[str, Tensor]]()

    def statistics() -> dict[str, Tensor]:
        return {n: m.running_mean.clone() for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}

    method = WidthMethod("cutting", keep=methods.width().keep, held=linear(1.0, 0.5)).on("one", example=X)
    optimizer, _ = attached(
        method, model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD,
        before_move=lambda: kept.append(statistics()),
    )  # fmt: skip
    plain = realloc.export.dense(model)
    step_on(model, optimizer, 0)
    after, (plan, _) = statistics(), moves[-1]
    gone = plan.changes[0].released
    assert len(gone) >= 1
    x = relu(plain.norm(plain.stem(data(0, *IMAGE))))
    mean = relu(plain.bn1(plain.one(x))).mean((0, 2, 3))
    lost = plain.two.weight[:, gone].sum((2, 3)) @ mean[gone]
    assert torch.allclose(after["bn2"], kept[0]["bn2"] - lost, rtol=0, atol=1e-12)
    for name in ("norm", "bn3"):
        assert torch.equal(after[name], kept[0][name])
    assert after["bn1"].tolist() == [v for i, v in enumerate(kept[0]["bn1"].tolist()) if i not in gone.tolist()]


def test_a_norm_whose_own_width_stays_takes_the_shift_too() -> None:
    model = Residual()
    method = WidthMethod("cutting", keep=methods.width().keep, held=linear(1.0, 0.5)).on("stem*", example=X)
    optimizer, handle = attached(method, model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    before = copy.deepcopy(realloc.export.dense(model))
    step_on(model, optimizer, 0)
    assert widths(handle)["stem+two"] < 8 and type(model.bn1) is nn.BatchNorm2d
    by_step = before.train()
    by_step(data(0, *IMAGE))
    assert not torch.allclose(model.bn1.running_mean, by_step.bn1.running_mean)  # behind `one`, which reads the stream
    assert not torch.allclose(model.bn3.running_mean, by_step.bn3.running_mean)


def test_flops_of_convolutions_are_those_by_hand() -> None:
    model = Residual()
    optimizer, handle = attached(on(methods.random_widths(drop=0.4, mature=0, currency="FLOPs"), X), model, total=20)
    for number in range(8):
        step_on(model, optimizer, number)
        stream, hidden, wide = widths(handle).values()
        by_hand = (
            36 * 9 * (2 * stream + 2 * stream * hidden)
            + 9 * 9 * stream * wide
            + 9 * stream * wide
            + 90 // 10 * 3 * wide
        )
        assert handle.held == 2 * by_hand <= handle.budget
    assert handle.units_moved >= 4


def test_a_chain_found_by_tracing_is_the_chain_read_off() -> None:
    for model, example in ((cnn(6, 5, 7), X), (mlp(6, 9, 8, 3, norm=True), data(0, 6, rows=2))):
        read, traced = (choose_widths(model, m) for m in (methods.width(), on(methods.width(), example)))
        assert read.widths == traced.widths and read.space.groups == traced.space.groups
        assert {m.name: (m.rows, m.columns) for m in read.space.members} == {
            m.name: (m.rows, m.columns) for m in traced.space.members
        }
        assert sorted(read.space.behind) == sorted(traced.space.behind)


def test_an_example_may_be_a_tuple_or_keywords() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 9, 3)
            self.other = nn.Linear(6, 9).to(DOUBLE)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"out": self.net[2](relu(self.net[0](x) + self.other(y)))}

    x = data(0, 6, rows=2)
    for example in ((x, x), {"x": x, "y": x}):
        assert choose_widths(Two(), on(methods.width(), example)).space.groups == ("net.0+other",)


# what is refused --------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A hidden dimension whose second half of the way differs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.layer_norm, self.group_norm = nn.LayerNorm(4), nn.GroupNorm(2, 4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1)) if kind == "parameter" else None
        self.register_buffer("fixed", torch.ones(4, 1, 1))
        self.lift, self.head = nn.Conv2d(2, 2, 1), nn.Linear(4, 3)
        self.plain = mlp(6, 5, 3)
        self.to(DOUBLE)

    def forward(self, x: Tensor) -> Any:
        image = x
        x = relu(self.a(x))
        if self.kind == "concatenation":
            x = self.c(torch.cat([x, relu(self.b(x))], 1))
        elif self.kind == "grouped":
            x = self.b(self.deep(x))
        elif self.kind == "layer norm":
            x = self.b(self.layer_norm(x.movedim(1, -1)).movedim(-1, 1))
        elif self.kind == "group norm":
            x = self.b(self.group_norm(x))
        elif self.kind == "parameter":
            x = self.b(x * self.scale)
        elif self.kind == "buffer":
            x = self.b(x * self.fixed)
        elif self.kind == "shuffle":
            x = self.b(x.view(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2))
        elif self.kind == "mean over units":
            x = self.b(x - x.mean(1, keepdim=True))
        elif self.kind == "input":
            x = self.b(relu(self.a(image + self.lift(image))))
        out = self.head(x.mean((2, 3))) + self.plain(image[:, 0, 0])
        return (out, x) if self.kind == "output" else out


@pytest.mark.parametrize(
    ("kind", "layer", "word"),
    [
        ("concatenation", "a", "c has it beside others"),
        ("concatenation", "b", "c has it beside others"),
        ("grouped", "a", "deep is a grouped convolution"),
        ("layer norm", "a", "layer_norm is a LayerNorm, which cannot be resized here"),
        ("group norm", "a", "group_norm is a GroupNorm"),
        ("parameter", "a", r"a parameter of shape \(4, 1, 1\) that is no layer's meets it"),
        ("buffer", "a", "a forward with one unit more failed"),
        ("shuffle", "a", "a forward with one unit more failed"),
        ("mean over units", "a", "which nobody reads, gave other outputs"),
        ("input", "lift", "a forward with one unit more failed"),
        ("output", "a", "outputs"),
    ],
)
def test_what_cannot_move_is_refused_by_name(kind: str, layer: str, word: str) -> None:
    model = Odd(kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"the width of '{layer}' cannot move: .*{word}"):
        realloc.prepare(model, on(moving(), X, layer))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    table = realloc.prepare(model, on(moving(), X), dry_run=True)  # the rest of the model moves all the same
    assert "plain.0: 5 units" in str(table) and f"{layer}: dense (" in str(table)


def test_attention_that_counts_its_heads_is_refused_by_a_trial() -> None:
    class Attention(nn.Module):
        def __init__(self, heads: int | None) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
            self.heads, self.head = heads, nn.Linear(8, 3)
            self.to(DOUBLE)

        def forward(self, x: Tensor) -> Tensor:
            x = x.view(len(x), 3, 8)
            q, k, v = (m(x) for m in (self.q, self.k, self.v))
            if self.heads:
                q, k, v = (t.view(len(x), 3, self.heads, -1).transpose(1, 2) for t in (q, k, v))
            mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(4), -1) @ v
            if self.heads:
                mixed = mixed.transpose(1, 2).flatten(2)
            return self.head(self.o(mixed).mean(1))

    x = data(0, 24, rows=2)
    for heads, word in ((None, ".*which nobody reads, gave"), (2, "a forward with one unit more failed")):
        assert choose_widths(Attention(heads), on(methods.width(), x)).space.groups == ("o",)
        with pytest.raises(ConfigError, match=rf"the width of 'q\+k\+v' cannot move: {word}"):
            choose_widths(Attention(heads), on(methods.width(), x, "q"))


def test_what_cannot_be_traced_or_is_not_installed_is_said(monkeypatch: Any) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no such thing")

    model = Broken().train()
    with pytest.raises(ConfigError, match=r"cannot trace this model \(ValueError: no such thing"):
        realloc.prepare(model, on(moving(), data(0, 6)))
    assert model.training and model.net[0].weight.requires_grad
    with pytest.raises(ConfigError, match="cannot trace this model"):
        realloc.prepare(mlp(6, 5, 3), on(moving(), data(0, 7)))
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match=r"pip install 'realloc\[width\]'"):
        realloc.prepare(mlp(6, 5, 3), on(moving(), data(0, 6)))


def test_a_frozen_layer_on_the_way_is_seen() -> None:
    model = Stream()
    model.stem.requires_grad_(False)
    model.second.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"is frozen; thaw it, or exclude its layer"):
        realloc.prepare(model, on(moving(), data(0, 6)))
    assert choose_widths(model, on(methods.width(), data(0, 6, rows=2))).space.groups == ("second+first+stem", "hidden")
