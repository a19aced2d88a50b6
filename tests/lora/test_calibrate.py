"""Ranks chosen before training: EVA and GoRA against their rules written out, recipes, hostile files."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from plain import DOUBLE, batch, made, net, step_on
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError, StateError

BATCHES = [batch(number) for number in range(3)]


def loss(model: nn.Module, pair) -> torch.Tensor:
    return (model(pair[0]) - pair[1]).square().mean()


def test_eva_takes_the_directions_that_explain_most_per_parameter():
    model = net()
    method = realloc.calibrate(model, BATCHES, methods.eva(rank=3, cap=5), loss=loss)
    x = torch.cat([x for x, _ in BATCHES])
    inputs = {"0": x, "2": torch.tanh(model[0](x)).detach()}
    worth, rows = [], {}
    for name, rows_in in inputs.items():
        centred = rows_in - rows_in.mean(0)
        _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
        shares = values.square() / values.square().sum()
        cost = sum(model[int(name)].weight.shape)
        worth += [(-float(share) / cost, name, cost) for share in shares[:5]]
        rows[name] = vectors
    left, expected, shut = 3 * (16 + 24), {"0": 0, "2": 0}, set()
    for _, name, cost in sorted(worth):
        if name not in shut and cost <= left:
            left, expected[name] = left - cost, expected[name] + 1
        else:
            shut.add(name)
    assert dict(method.ranks) == expected and expected["0"] != expected["2"]
    realloc.prepare(model, method)
    for name, rank in expected.items():
        a, b = model[int(name)].realloc_site.factors()
        assert a.shape[0] == rank and not b.any()
        along = (a * rows[name][:rank]).sum(1).abs()
        assert torch.allclose(along, torch.ones(rank, dtype=DOUBLE), atol=1e-6)
    assert model.realloc_pool0.numel() == 3 * (16 + 24), "what pays for no rank is parked"


def test_gora_shares_by_weight_times_gradient():
    model = net()
    method = realloc.calibrate(model, BATCHES, methods.gora(budget=120, cap=9, least=0), loss=loss)
    total = sum(loss(model, pair) for pair in BATCHES) / 3
    grads = torch.autograd.grad(total, [model[0].weight, model[2].weight])
    worth = [
        float((w * g).abs().mean().detach()) for w, g in zip((model[0].weight, model[2].weight), grads, strict=True)
    ]
    ranks = dict(method.ranks)
    for name, mine, cost in (("0", worth[0], 16), ("2", worth[1], 24)):
        share = 120 * mine / sum(worth) / cost
        assert share < min(9, *model[int(name)].weight.shape), "no cap is in the way"
        assert int(share) <= ranks[name] <= share + 2
    held = sum(r * c for r, c in zip(ranks.values(), (16, 24), strict=True))
    assert 120 - 16 < held <= 120 and ranks["0"] != ranks["2"]


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_gora_begins_one_step_down_the_slope_and_says_so(scale):
    """B is the gradient times the pseudo-inverse of A, as the paper has it; the step has gamma times the norm of G."""
    wide = net(sizes=(6, 300, 200, 4))  # a random A keeps sqrt(r / in) of a gradient only on average
    method = realloc.calibrate(wide, BATCHES, methods.gora(rank=4, gamma=0.1, scale=scale), loss=loss, seed=3)
    total = sum(loss(wide, pair) for pair in BATCHES) / 3
    weights = {name: wide[int(name)].weight for name in ("0", "2")}
    grads = dict(zip(weights, torch.autograd.grad(total, [*weights.values()]), strict=True))
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    table = realloc.prepare(wide, method, seed=8)
    moved = []
    for name, gradient in grads.items():
        site = wide[int(name)].realloc_site
        a, b = site.factors()
        step = wide[int(name)].weight.detach() - before[name]
        onto = a.t() @ torch.linalg.inv(a @ a.t()) @ a
        wanted = -0.1 * (a.shape[1] / a.shape[0]) ** 0.5 * gradient @ onto
        assert torch.allclose(step, wanted, rtol=0, atol=1e-6 * float(wanted.norm()))
        assert torch.allclose(b, (wanted @ torch.linalg.pinv(a)).t() / scale, atol=1e-7)
        line = next(line for line in table.sites if line.name == f"{name}.weight")
        assert f"jump {float(step.norm()):.3g}" in line.note
        moved.append(float(step.norm()))
    assert moved[1] / float(grads["2"].norm()) == pytest.approx(0.1, rel=0.3)
    assert f"change by {(moved[0] ** 2 + moved[1] ** 2) ** 0.5:.3g} in all" in str(table)
    assert sum(loss(wide, pair).item() for pair in BATCHES) / 3 < total.item()
    again = realloc.calibrate(net(sizes=(6, 300, 200, 4)), BATCHES, methods.gora(rank=4, gamma=0.1), loss=loss, seed=3)
    other = realloc.calibrate(net(sizes=(6, 300, 200, 4)), BATCHES, methods.gora(rank=4, gamma=0.1), loss=loss, seed=4)
    assert torch.equal(again.rows["0.weight"], method.rows["0.weight"])
    assert not torch.equal(again.rows["0.weight"], other.rows["0.weight"])


@pytest.mark.parametrize("make", [methods.eva, partial(methods.gora, gamma=0), methods.gora])
def test_calibration_changes_nothing_and_repeats(make):
    model = net().train()
    model[2].requires_grad_(False)
    model.append(nn.Dropout(0.5))
    flags = [p.requires_grad for p in model.parameters()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    noise = torch.random.get_rng_state()
    one = realloc.calibrate(model, BATCHES, make(rank=2), loss=loss)
    two = realloc.calibrate(model, iter(BATCHES), make(rank=2), loss=loss)
    assert one.ranks == two.ranks and all(torch.equal(one.rows[k], two.rows[k]) for k in one.rows)
    assert torch.equal(noise, torch.random.get_rng_state())
    assert [p.requires_grad for p in model.parameters()] == flags and all(m.training for m in model.modules())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(p.grad is None for p in model.parameters()) and type(model[0]) is nn.Linear
    x = batch(0)[0]
    wanted = model.eval()(x)
    table = realloc.prepare(model, one)
    same = torch.allclose(model(x), wanted, rtol=0, atol=1e-14)
    assert same != bool(one.rows_b) and ("the start is not the model as it was" in str(table)) != same


def test_the_same_input_is_looked_at_once_and_padding_never():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=50, num_labels=2
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(1, 50, (4, 7))
    short = {
        "input_ids": ids[:, :5],
        "attention_mask": torch.ones(4, 5, dtype=torch.long),
        "labels": torch.zeros(4).long(),
    }
    padded = {
        "input_ids": torch.cat([ids[:, :5], torch.zeros(4, 2, dtype=torch.long)], 1),
        "attention_mask": torch.cat([torch.ones(4, 5), torch.zeros(4, 2)], 1).long(),
        "labels": torch.zeros(4).long(),
    }
    plain = realloc.calibrate(model, [short], methods.eva(rank=2))
    other = realloc.calibrate(model, [padded], methods.eva(rank=2))
    assert plain.ranks == other.ranks
    for key, rows in plain.rows.items():
        assert torch.allclose(rows.abs(), other.rows[key].abs(), atol=1e-3)
    keys = [f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key", "value")]
    assert torch.equal(plain.rows[keys[0]][:1], plain.rows[keys[1]][:1])


def test_what_cannot_be_calibrated_is_refused():
    model = net()
    for word, call in {
        "measures before training": lambda: realloc.calibrate(model, BATCHES, methods.lora(rank=2)),
        "there is no batch": lambda: realloc.calibrate(model, [], methods.eva(rank=2), loss=loss),
        "a batch is a tuple, no dict": lambda: realloc.calibrate(model, BATCHES, methods.eva(rank=2)),
        "must be one finite number": lambda: realloc.calibrate(
            model, BATCHES, methods.eva(rank=2), loss=lambda m, b: m(b[0]) * float("nan")
        ),
        "no layer that may hold ranks was called": lambda: realloc.calibrate(
            model, BATCHES, methods.eva(rank=2), loss=lambda m, b: b[0].sum()
        ),
        "realloc.calibrate": lambda: realloc.prepare(model, methods.gora(rank=2)),
        "least is -1": lambda: methods.gora(rank=2, least=-1),
        "gamma is 2": lambda: methods.gora(rank=2, gamma=2),
        "least=1 ranks in each of 2 layers take 40; raise": lambda: realloc.calibrate(
            model, BATCHES, methods.gora(budget=39), loss=loss
        ),
    }.items():
        with pytest.raises(ConfigError, match=word):
            call()
        assert type(model[0]) is nn.Linear and all(p.requires_grad for p in model.parameters())
    realloc.prepare(model, methods.lora(rank=2))
    with pytest.raises(StateError, match="calibrate before prepare"):
        realloc.calibrate(model, BATCHES, methods.eva(rank=2), loss=loss)


# recipes ----------------------------------------------------------------------------------------------------------


def test_a_recipe_replays_the_allocation(tmp_path):
    model, optimizer, handle = made(methods.random_ranks(rank=3, drop=0.6, scale=1.5), gap=1, total=10)
    for number in range(10):
        step_on(model, optimizer, number)
    path = realloc.export.recipe(model, tmp_path / "deep" / "ranks.json")
    again, _, mine = made(methods.fixed(path))
    assert {n: s.rank for n, s in mine.sites.items()} == {n: s.rank for n, s in handle.sites.items()}
    assert {s.scale for s in mine.sites.values()} == {1.5} and mine.parked == 0
    assert again.realloc_pool0.numel() == handle.held
    assert methods.fixed(path, scale=0.5).scale == 0.5


GOOD = {"format": "realloc ranks", "version": 1, "scale": 1.0, "ranks": {"0": 2}}


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "cannot be read"), (b"\xff\xfe", "cannot be read"), (b"[" * 100_000, "cannot be read"),
        (b"{}", "no recipe"), (b"[]", "no recipe"), (b'{"format": "realloc ranks", "version": 1}', "lacks"),
        (json.dumps(GOOD | {"version": 2}).encode(), "version 1"),
        (json.dumps(GOOD | {"ranks": []}).encode(), "give the ranks of layers by name"),
        (json.dumps(GOOD | {"ranks": {"0": 2.0}}).encode(), "use an integer"),
        (json.dumps(GOOD | {"ranks": {"0": True}}).encode(), "use an integer"),
        (json.dumps(GOOD | {"ranks": {"0": -1}}).encode(), "use an integer"),
        (json.dumps(GOOD | {"ranks": {"0": 10**9}}).encode(), "use an integer"),
        (json.dumps(GOOD | {"ranks": {"0": 0}}).encode(), "every given rank is 0"),
        (json.dumps(GOOD | {"scale": "1"}).encode(), "scale is '1'"),
        (json.dumps(GOOD | {"scale": float("nan")}).encode(), "cannot be read"),
        (b'{"format": "realloc ranks", "version": 1, "scale": 1, "ranks": {"0": 1, "0": 2}}', "twice"),
        (b" " * ((1 << 22) + 1), "larger than any recipe"),
    ],
    ids=range(17),
)  # fmt: skip
def test_a_hostile_recipe_is_refused(tmp_path, data, word):
    path = tmp_path / "ranks.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=word):
        methods.fixed(path)


def test_no_file_and_odd_names(tmp_path):
    with pytest.raises(ConfigError, match="is no file") as caught:
        methods.fixed(tmp_path / "no\x1b[2J")
    assert "\x1b" not in str(caught.value)
    with pytest.raises(ConfigError, match="is no file"):
        methods.fixed(tmp_path)
    with pytest.raises(ConfigError, match="give the ranks of layers"):
        methods.fixed({})
    with pytest.raises(ConfigError, match="has no ranks to write down"):
        realloc.export.recipe(net(), tmp_path / "x.json")
