"""From a plain model and back: which layers, attach with and without prepare, detach, export, loading, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from frozen import DOUBLE, batch, loss_of, made, net, step_on, trainable
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError, RecordError, StateError
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.method import Method
from realloc.sites.delta import base_of

EVERY = realloc.every(3, total=30)


def method(budget: int = 60) -> DeltaMethod:
    return methods.spiel(budget=budget, drop=0.4, steps=2)


@pytest.mark.parametrize("groups", [1, 2])
def test_attach_alone_trains_as_prepare_first(groups):
    model, optimizer, handle = made(method(), gap=3, total=30, weight_decay=0.1)
    other = net()
    parameters = [*other.parameters()]
    parts = [{"params": parameters}]
    if groups == 2:  # as transformers makes them: biases apart
        parts = [{"params": parameters[::2]}, {"params": parameters[1::2], "weight_decay": 0.1}]
    second = torch.optim.AdamW(parts, lr=1e-2, weight_decay=0.1)
    alone = realloc.attach(other, second, method(), schedule=EVERY)
    assert [len(g["params"]) for g in second.param_groups] == ([7] if groups == 1 else [4, 3])
    for number in range(9):
        assert step_on(model, optimizer, number) == pytest.approx(step_on(other, second, number), rel=1e-12)
    assert alone.moves == handle.moves == 3
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


def test_an_optimizer_that_trained_before_gets_all_back():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for number in range(3):
        step_on(model, optimizer, number)
    body = model[0].weight.detach().clone()
    handle = realloc.attach(model, optimizer, method(), schedule=EVERY)
    for number in range(3, 9):
        step_on(model, optimizer, number)
    assert torch.equal(base_of(model[0]), body), "a frozen weight moved"
    x = batch(9)[0]
    wanted, delta = model(x).detach(), handle.sites["0.weight"].weight().detach()
    handle.detach()
    assert torch.equal(model[0].weight, body + delta) and delta.any()
    assert torch.allclose(model(x), wanted, rtol=0, atol=1e-13)
    assert [*model.state_dict()] == [*net().state_dict()] and len(trainable(model)) == 6
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert type(model[0]) is nn.Linear and not model._forward_hooks
    step_on(model, optimizer, 9)


def test_merged_weights_are_a_plain_model_and_the_source_goes_on():
    model, optimizer, handle = made(method(), gap=3, total=30)
    for number in range(8):
        step_on(model, optimizer, number)
    x = batch(9)[0]
    for export in (realloc.export.merged, realloc.export.dense):
        plain = export(model)
        assert [*plain.state_dict()] == [*net().state_dict()]
        again = net()
        again.load_state_dict(plain.state_dict())
        assert torch.allclose(again(x), model(x), rtol=0, atol=1e-13)
    step_on(model, optimizer, 8)
    assert handle.moves == 3


def test_the_table_says_what_stands_where():
    model = net()
    table = realloc.prepare(model, method(60), dry_run=True)
    assert [*model.state_dict()] == [*net().state_dict()] and len(trainable(model)) == 6
    text = str(table)
    for words in ("spiel: 60 weights in deltas held of 200", "delta    kernel", "4: dense (the task head)",
                  "trains in full beside the deltas: 4 (60 parameters)", "frozen: 224 parameters"):  # fmt: skip
        assert words in text, text
    assert table.budget == 60 and table.density == 0.3
    model, _, handle = made(method(60))
    assert "delta, kernel" in handle.summary() and "released by lowest magnitude" in handle.explain("0")


def test_patterns_choose_layers_and_what_trains_in_full():
    model = net()
    table = realloc.prepare(model, method().on("*", exclude=("2",), train=("2",)))
    assert [line.name for line in table.sites] == ["0.weight", "4.weight"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"realloc_pool0", "2.weight", "2.bias"}


def test_shira_needs_no_schedule_and_starts_as_it_says():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    handle = realloc.attach(model, optimizer, methods.shira(budget=40, by="magnitude"))
    for site, fan in zip(handle.sites.values(), (16, 24), strict=True):
        size = net()[0 if site.name[0] == "0" else 2].weight.detach().abs()
        assert site.held == fan, "in proportion to in + out"
        assert float(size[site.mask()].min()) >= float(size[~site.mask()].max())
    step_on(model, optimizer, 0)
    assert handle.moves == 0 and handle.held == 40
    with pytest.raises(ConfigError, match="schedule"):
        realloc.attach(net(), torch.optim.AdamW(net().parameters()), method())


@pytest.mark.parametrize("make", [methods.spiel, methods.shira])
def test_places_by_a_few_batches_are_the_largest_mean_gradients_over_all_layers(make):
    more = {"begin": "gradient"} if make is methods.spiel else {"by": "gradient"}
    model, asked = net(), make(budget=30, **more)
    with pytest.raises(ConfigError, match=r"measures a few batches first: method = realloc\.calibrate"):
        realloc.prepare(model, asked)
    before = copy.deepcopy(model.state_dict())
    known = realloc.calibrate(model, [1, 2, 3], asked, loss=loss_of)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and len(trainable(model)) == 6
    plain = net()
    sum(loss_of(plain, number) for number in (1, 2, 3)).backward()
    sizes = torch.cat([plain[i].weight.grad.abs().flatten() for i in (0, 2)])
    wanted = torch.zeros(200, dtype=torch.bool)
    wanted[sizes.topk(30).indices] = True
    table = realloc.prepare(model, known)
    found = torch.cat([model[i].realloc_site.mask().flatten() for i in (0, 2)])
    assert torch.equal(found, wanted) and table.budget == 30
    handle = realloc.attach(model, torch.optim.AdamW(trainable(model)), known, schedule=EVERY)
    assert handle.held == 30
    with pytest.raises(ConfigError, match="calibrate got"):
        realloc.calibrate(net(), [1], known, loss=loss_of)
    other = net(sizes=(6, 10, 14, 8, 4))
    with pytest.raises(ConfigError, match=r"0 of 30 fit this model|30 of 30|calibrate it on this model"):
        realloc.prepare(other, realloc.calibrate(net(), [1], make(budget=30, **more), loss=loss_of).on("0"))


def test_gpt2_whose_weights_lie_the_other_way_round():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config)
    plain = copy.deepcopy(model)
    ids = torch.randint(30, (2, 9))
    asked = methods.spiel(budget=200, drop=0.4, steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    handle = realloc.attach(model, optimizer, asked, schedule=EVERY)
    assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-6)
    for _ in range(9):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    name = "transformer.h.0.mlp.c_fc"
    layer, site = model.get_submodule(name), handle.sites[f"{name}.weight"]
    assert layer.weight.shape == (8, 32) and site.shape == (32, 8) and handle.moves == 3 and handle.held == 200
    out = model(ids).logits.detach()
    merged = realloc.export.merged(model)
    plain.load_state_dict(merged.state_dict())
    assert torch.allclose(plain(ids).logits, out, atol=1e-5)
    changed = merged.get_submodule(name).weight != layer._parameters["weight"]
    assert torch.equal(changed.t(), site.mask() & changed.t())
    handle.detach()
    assert type(model.get_submodule(name)) is type(plain.get_submodule(name))
    assert torch.allclose(model(ids).logits, out, atol=1e-5)


# refusals ---------------------------------------------------------------------------------------------------------


class Odd(nn.Linear):
    """What a library of quantised layers does."""


class Two(nn.Module):
    def __init__(self, one: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.one, self.head = one, head


@pytest.mark.parametrize(
    ("model", "asked", "word"),
    [
        (lambda: Two(nn.Conv1d(4, 4, 1), nn.Linear(4, 2)), method(), r"no layer of this Two may hold deltas"),
        (lambda: Two(nn.Conv1d(4, 4, 1), nn.Linear(4, 2)), method().on("one"), r"one is a Conv1d, no nn\.Linear, and"),
        (lambda: Two(Odd(4, 4), nn.Linear(4, 2)), method().on("one"), r"one cannot hold deltas: a Odd is no plain"),
        (net, method(201), r"was asked for 201 parameters.*of the 200 weights of 2 layers; give 1 to 200"),
        (net, methods.shira(density=0.001), r"that is 0 of the 200 weights"),
        (lambda: net().to("meta"), method(), "meta device"),
        (net, DeltaMethod("d", rule=methods.gmp, budget=9), r"rule of d made gmp with a density that falls"),
        (net, DeltaMethod("d", rule=lambda density: None, budget=9), r"rule of d made None"),
        (net, DeltaMethod("d", rule=lambda density: Method("m", density).on("0"), budget=9), "layers of its own"),
    ],
)  # fmt: skip
def test_what_cannot_hold_deltas_is_refused_by_name(model, asked, word):
    made_model = model()
    before = [*made_model.state_dict()], [p.requires_grad for p in made_model.parameters()]
    with pytest.raises(ConfigError, match=word):
        realloc.prepare(made_model, asked)
    assert ([*made_model.state_dict()], [p.requires_grad for p in made_model.parameters()]) == before


def test_a_peft_model_is_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(net(torch.float32), peft.LoraConfig(r=2, target_modules=["0", "2"]))
    with pytest.raises(ConfigError, match=r"has ranks, no place for deltas; take its merge_and_unload"):
        realloc.prepare(model, method())


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: methods.spiel(), "got neither; give budget= or density="),
        (lambda: methods.spiel(9, density=0.5), "got budget and density"),
        (lambda: methods.spiel(0), "budget is 0; it is a number of parameters"),
        (lambda: methods.spiel(True), "budget is True"),
        (lambda: methods.shira(density=1.5), r"density is 1\.5"),
        (lambda: methods.spiel(9, begin="best"), "begin is 'best'"),
        (lambda: methods.shira(9, by="size"), "by is 'size'"),
        (lambda: methods.spiel(9, steps=1).moves, r"strongest\(steps=1\)"),
        (lambda: methods.spiel(9, candidates=0).moves, r"strongest\(factor=0\)"),
        (lambda: methods.spiel(9, drop=1.0).moves, r"drop is 1\.0"),
        (lambda: DeltaMethod("d", methods.rigl, 9, begin="there"), "begin is 'there'"),
        (lambda: methods.spiel(9).on("*", exclude="fc"), "exclude is the string"),
    ],
)
def test_bad_settings_are_refused(make, word):
    with pytest.raises(ConfigError, match=word):
        make()


def test_methods_that_rank_across_sites_refuse_what_would_have_no_say():
    from realloc.observe.candidates import strongest
    from realloc.select.sampled import sampled

    with pytest.raises(ConfigError, match="leave survive, acquire, share and regrow"):
        Method("m", 0.5, across=True, acquire=sampled(1.0))
    with pytest.raises(ConfigError, match=r"asks for strongest\(1, steps=5\).*across=True"):
        Method("m", 0.5, candidates=strongest())


def test_another_method_than_prepared_is_refused():
    model = net()
    realloc.prepare(model, methods.shira(budget=40))
    optimizer = torch.optim.AdamW(trainable(model))
    for other in (methods.shira(budget=41), methods.shira(budget=40, by="magnitude"), method(40), methods.lora(rank=2)):
        with pytest.raises(ConfigError, match=r"prepared for shira at 40 parameters.*same method to both"):
            realloc.attach(model, optimizer, other, schedule=EVERY)


def test_an_optimizer_made_too_early_or_without_the_head_is_refused():
    model = net()
    early = torch.optim.AdamW(model.parameters())
    realloc.prepare(model, method())
    with pytest.raises(ConfigError, match=r"does not hold the pool.*after prepare"):
        realloc.attach(model, early, method(), schedule=EVERY)
    with pytest.raises(ConfigError, match=r"does not hold '4\.weight', which trains beside the deltas"):
        realloc.attach(model, torch.optim.AdamW([model.realloc_pool0]), method(), schedule=EVERY)
    other = net()
    with pytest.raises(ConfigError, match="cannot share a pool"):
        realloc.attach(other, torch.optim.Adafactor(other.parameters()), method(), schedule=EVERY)
    assert [*other.state_dict()] == [*net().state_dict()] and len(trainable(other)) == 6


def test_states_that_do_not_belong_are_refused_before_anything_is_copied():
    model, optimizer, _ = made(method(), gap=3)
    for number in range(4):
        step_on(model, optimizer, number)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    good = copy.deepcopy(model.state_dict())
    cases = {
        "a plain model": net().state_dict(),
        "in the state": made(method(61))[0].state_dict(),
        "digest|not sorted|outside|row pointer": good | {"realloc_columns0": good["realloc_columns0"].roll(1)},
    }
    for word, state in cases.items():
        with pytest.raises(RecordError, match=word):
            model.load_state_dict(state)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items()), word


def test_damaged_candidates_are_noticed():
    model, optimizer, _ = made(method(), gap=3)
    for number in range(2):
        step_on(model, optimizer, number)
    state = copy.deepcopy(model.state_dict())
    assert int(state["realloc_collected0"][-1]) == 1
    state["realloc_candidates0"] += 10_000
    model.load_state_dict(state)
    with pytest.raises(StateError, match=r"damaged|placement"):
        step_on(model, optimizer, 2)


def test_model_and_optimizer_apart_are_refused():
    model, optimizer, _ = made(method(), gap=1)
    old = copy.deepcopy(model.state_dict())
    for number in range(4):
        step_on(model, optimizer, number)
    model.load_state_dict(old)
    with pytest.raises(StateError, match="different placements"):
        step_on(model, optimizer, 4)


def test_layers_of_two_dtypes_are_two_pools_and_the_table_says_so():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 8).double(), nn.Linear(8, 4).double()

        def forward(self, x):
            return self.head(torch.tanh(self.two(torch.tanh(self.one(x.float())).double())))

    torch.manual_seed(0)
    model = Mixed()
    model, optimizer, handle = made(method(40), model=model, gap=3)
    assert "do not move between them" in str(handle.start) and handle.held == 40
    lengths = model.realloc_pool0.numel(), model.realloc_pool1.numel()
    for number in range(7):
        optimizer.zero_grad()
        x, y = batch(number)
        (model(x) - y).square().mean().backward()
        optimizer.step()
    assert handle.moves == 2 and handle.held == handle.budget == 40
    assert (model.realloc_pool0.numel(), model.realloc_pool1.numel()) == lengths
    assert model.realloc_pool0.dtype == torch.float32 and model.realloc_pool1.dtype == DOUBLE
