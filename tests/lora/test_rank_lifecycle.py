"""From a plain model and back: which layers, attach with and without prepare, detach, loading, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from plain import batch, made, net, step_on, trainable
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError, RecordError, StateError
from realloc.methods.rank_method import RankMethod

EVERY = realloc.every(2, total=20)


# attach without prepare -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_attach_alone_trains_as_prepare_first(groups):
    method = methods.random_ranks(rank=2)
    model, optimizer, handle = made(method, gap=2, total=20, weight_decay=0.1)
    other = net()
    parameters = [*other.parameters()]
    parts = [{"params": parameters}]
    if groups == 2:  # as transformers makes them: biases apart
        parts = [{"params": parameters[::2]}, {"params": parameters[1::2], "weight_decay": 0.1}]
    second = torch.optim.AdamW(parts, lr=1e-2, weight_decay=0.1)
    alone = realloc.attach(other, second, method, schedule=EVERY)
    assert [len(g["params"]) for g in second.param_groups] == ([7] if groups == 1 else [4, 3])
    for number in range(8):
        assert step_on(model, optimizer, number) == pytest.approx(step_on(other, second, number), rel=1e-12)
    assert alone.moves == handle.moves >= 2
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


def test_an_optimizer_that_trained_before_keeps_its_state_of_the_head_and_gives_all_back():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for number in range(3):
        step_on(model, optimizer, number)
    mean = optimizer.state[model[4].weight]["exp_avg"].clone()
    body = model[0].weight.detach().clone()
    handle = realloc.attach(model, optimizer, methods.lora(rank=2))
    assert torch.equal(optimizer.state[model[4].weight]["exp_avg"], mean)
    step_on(model, optimizer, 3)
    assert torch.equal(dict(model.named_parameters())["0.weight"], body), "a frozen weight moved"
    x = batch(9)[0]
    wanted = model(x)
    handle.detach()
    assert torch.allclose(model(x), wanted, rtol=0, atol=1e-13)
    assert [*model.state_dict()] == [*net().state_dict()] and len(trainable(model)) == 6
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert type(model[0]) is nn.Linear and not model._forward_hooks
    assert not torch.equal(model[0].weight, body)
    step_on(model, optimizer, 4)


def test_detach_lets_only_that_train_which_trained_before():
    model = net()
    model[2].requires_grad_(False)
    realloc.prepare(model, methods.lora(rank=2))
    optimizer = torch.optim.AdamW(trainable(model))
    handle = realloc.attach(model, optimizer, methods.lora(rank=2))
    handle.detach()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert flags == {
        "0.weight": True,
        "0.bias": True,
        "2.weight": False,
        "2.bias": False,
        "4.weight": True,
        "4.bias": True,
    }
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in model[4].parameters()]


def test_another_method_than_prepared_is_refused():
    model = net()
    realloc.prepare(model, methods.lora(rank=2))
    optimizer = torch.optim.AdamW(trainable(model))
    for other in (methods.lora(rank=3), methods.lora(rank=2, scale=2.0), methods.adalora(rank=2), methods.rigl(0.5)):
        with pytest.raises(ConfigError, match=r"prepared for lora at rank 2.*same method to both"):
            realloc.attach(model, optimizer, other, schedule=EVERY)


def test_an_optimizer_made_too_early_or_of_the_head_only_is_refused():
    model = net()
    early = torch.optim.AdamW(model.parameters())
    realloc.prepare(model, methods.lora(rank=2))
    with pytest.raises(ConfigError, match=r"does not hold the pool.*after prepare"):
        realloc.attach(model, early, methods.lora(rank=2))
    other = net()
    with pytest.raises(ConfigError, match=r"does not hold '0\.weight'"):
        realloc.attach(other, torch.optim.AdamW(other[4].parameters()), methods.lora(rank=2))
    body = [p for name, p in other.named_parameters() if not name.startswith("4")]
    with pytest.raises(ConfigError, match=r"does not hold '4\.weight', which trains beside the ranks"):
        realloc.attach(other, torch.optim.AdamW(body), methods.lora(rank=2))
    assert [*other.state_dict()] == [*net().state_dict()] and len(trainable(other)) == 6
    with pytest.raises(ConfigError, match="cannot share a pool"):
        realloc.attach(other, torch.optim.Adafactor(other.parameters()), methods.lora(rank=2))
    assert [*other.state_dict()] == [*net().state_dict()] and len(trainable(other)) == 6


def test_a_head_that_no_optimizer_trains_is_refused():
    model = net()
    realloc.prepare(model, methods.lora(rank=2))
    optimizer = torch.optim.AdamW([model.realloc_pool0])
    with pytest.raises(ConfigError, match=r"does not hold '4\.weight', which trains beside the ranks.*freeze that one"):
        realloc.attach(model, optimizer, methods.lora(rank=2))
    model[4].requires_grad_(False)
    realloc.attach(model, optimizer, methods.lora(rank=2))


def test_a_method_that_moves_needs_a_schedule():
    model = net()
    with pytest.raises(ConfigError, match="schedule"):
        realloc.attach(model, torch.optim.AdamW(model.parameters()), methods.adalora(rank=2))


# which layers -----------------------------------------------------------------------------------------------------


def test_patterns_choose_layers_and_what_trains_in_full():
    model = net()
    table = realloc.prepare(model, methods.lora(rank=2).on("*", exclude=("2",), train=("2",)))
    assert [line.name for line in table.sites] == ["0.weight", "4.weight"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"realloc_pool0", "2.weight", "2.bias"}
    nothing = net()
    realloc.prepare(nothing, methods.lora(rank=2).on(train=()))
    assert {n for n, p in nothing.named_parameters() if p.requires_grad} == {"realloc_pool0"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.embedding, self.head = nn.Embedding(5, 6), nn.Linear(6, 5, bias=False)
        self.conv = nn.Conv1d(6, 6, 1)

    def forward(self, x):
        return self.head(self.three(self.two(self.one(x))))


class Odd(nn.Linear):
    """What a library of quantised layers does."""


@pytest.mark.parametrize(
    ("change", "method", "word"),
    [
        (None, methods.lora(rank=1).on("one"), r"one cannot hold ranks: its weight is tied"),
        (None, methods.lora(rank=1).on("conv"), r"conv is a Conv1d, no nn\.Linear"),
        (None, methods.lora(rank=1).on("*thre"), r"matches no linear layer; nearest: 'three'"),
        (None, methods.lora(rank=1).on("*", exclude=("nothing*",)), r"exclude pattern 'nothing\*' matches nothing"),
        (None, methods.lora(rank=1).on(train=("haed",)), r"train pattern 'haed' matches nothing; nearest: 'head'"),
        (lambda m: setattr(m, "three", Odd(6, 6)), methods.lora(rank=1).on("three"), r"three cannot hold.*a Odd is"),
        (lambda m: m.three.weight.data.fill_(float("nan")), methods.lora(rank=1), r"three\.weight has NaN or Inf"),
        (lambda m: m.to("meta"), methods.lora(rank=1), r"meta device"),
        (lambda m: nn.utils.parametrizations.weight_norm(m.three), methods.lora(rank=1).on("three"), r"no plain"),
        (None, methods.lora(budget=11), r"budget is 11 param.*cheapest, of three\.weight, costs 12"),
        (None, methods.adalora(budget=11), r"below one rank"),
        (None, methods.lora(rank=2).on("*\x1b[2J"), r"'\*\[2J' matches no linear"),
        (None, methods.random_ranks(budget=10_000), r"10,000 parameters do not fit.*raise cap"),
        (None, RankMethod("given", ranks=(("three", 7),)), r"three is \(6, 6\) and asked for 7 ranks"),
        (None, RankMethod("given", ranks=(("thre", 1),)), r"'thre' is no layer.*nearest: 'three'"),
    ],
)  # fmt: skip
def test_what_cannot_hold_ranks_is_refused_by_name(change, method, word):
    model = Tied()
    if change is not None:
        change(model)
    before, flags = [*model.state_dict()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(ConfigError, match=word) as caught:
        realloc.prepare(model, method)
    assert "\x1b" not in str(caught.value)
    assert [*model.state_dict()] == before and [p.requires_grad for p in model.parameters()] == flags


def test_odd_layers_are_left_out_by_default_and_the_table_says_why():
    model = Tied()
    table = realloc.prepare(model, methods.lora(rank=1))
    assert [line.name for line in table.sites] == ["three.weight"]
    assert "one: dense (its weight is tied" in str(table) and "head: dense (the task head)" in str(table)


def test_a_model_without_linear_layers_is_refused():
    for model in (nn.Sequential(nn.Conv1d(2, 2, 1)), nn.Sequential(nn.Linear(4, 2))):
        with pytest.raises(ConfigError, match="no layer of this Sequential may hold ranks"):
            realloc.prepare(model, methods.lora(rank=1))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: methods.lora(), "give rank= or budget="),
        (lambda: methods.lora(2, budget=100), "got rank and budget"),
        (lambda: methods.lora(rank=0), r"rank is 0; it is a number of ranks"),
        (lambda: methods.lora(rank=True), "rank is True"),
        (lambda: methods.lora(budget=2.5), r"budget is 2\.5; it is a number of parameters"),
        (lambda: methods.lora(rank=2, scale=float("nan")), "scale is nan"),
        (lambda: methods.lora(rank=2, scale=0), "scale is 0"),
        (lambda: methods.random_ranks(rank=4, cap=2), "cap=2 is below rank=4"),
        (lambda: methods.random_ranks(rank=4, drop=1.0), r"drop is 1\.0"),
        (lambda: methods.adalora(rank=4, start=1.0), "start is 1.0"),
        (lambda: methods.adalora(rank=4, beta1=1.0), "betas"),
        (lambda: methods.para(rank=4, start=0.5), "start is 0.5"),
        (lambda: methods.rank_gradient(rank=4, start=1.5), "start is 1.5"),
        (lambda: methods.rank_gradient(rank=4, margin=0.5), "margin is 0.5"),
        (lambda: methods.lora(rank=4).on("*", exclude="fc"), "exclude is the string"),
        (lambda: methods.lora(rank=4).on("*", train="fc"), "train is the string"),
    ],
)
def test_bad_settings_are_refused_where_they_are_made(make, word):
    with pytest.raises(ConfigError, match=word):
        make()


# loading ----------------------------------------------------------------------------------------------------------


def test_states_that_do_not_belong_are_refused_before_anything_is_copied():
    model, _, _ = made(methods.random_ranks(rank=3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    good = made(methods.random_ranks(rank=3), seed=5)[0].state_dict()
    cases = {
        "a plain model": net().state_dict(),
        "budget": made(methods.random_ranks(rank=4, cap=6))[0].state_dict(),
        "scale": made(methods.random_ranks(rank=3, scale=2.0))[0].state_dict(),
        "digest": good | {"realloc_ranks0": good["realloc_ranks0"].roll(1)},
        "does not fit its": good | {"realloc_extents0": good["realloc_extents0"] + torch.tensor([0, 1, 0])},
        "shape|in the state": good | {"realloc_pool0": good["realloc_pool0"][:-1]},
    }
    for word, state in cases.items():
        with pytest.raises(RecordError, match=word if word != "budget" else "in the state|budget"):
            model.load_state_dict(state)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items()), word


def test_model_and_optimizer_apart_are_refused():
    model, optimizer, _ = made(methods.random_ranks(rank=3), gap=1)
    old = copy.deepcopy(model.state_dict())
    for number in range(4):
        step_on(model, optimizer, number)
    model.load_state_dict(old)
    with pytest.raises(StateError, match="different placements"):
        step_on(model, optimizer, 4)


def test_a_compacted_state_loads_into_a_new_model():
    model, optimizer, handle = made(methods.adalora(rank=3), gap=2, total=8)
    for number in range(8):
        step_on(model, optimizer, number)
    handle.compact()
    again, other, mine = made(methods.adalora(rank=3), gap=2, total=8)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert mine.budget == handle.budget and mine.parked == 0
    assert step_on(again, other, 9) == step_on(model, optimizer, 9)


def test_float16_gradients_scaled_are_the_same_decisions():
    """A GradScaler's factor is a power of two; the layers' gains all grow by it."""
    ends = []
    for factor in (1.0, 1024.0):
        model, optimizer, handle = made(methods.rank_gradient(rank=3), optimizer=torch.optim.SGD, lr=1e-2 / factor)
        for number in range(20):
            step_on(model, optimizer, number, scale=factor)
        ends.append([site.rank for site in handle.sites.values()])
    assert ends[0] == ends[1]
