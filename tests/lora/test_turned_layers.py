"""Ranks beside GPT-2's Conv1D, whose weight is stored [in, out]: against LoRA written out, and against real peft."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from plain import DOUBLE, Events, Plain, trainable
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
from transformers.pytorch_utils import Conv1D  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

GPT2 = {"vocab_size": 99, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
NAMES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
PLACES = [f"transformer.h.{i}.{name}" for i in range(2) for name in NAMES]


def gpt2(kind: str = "GPT2ForSequenceClassification", **more) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(**GPT2, num_labels=3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **more)
    return getattr(transformers, kind)(config).eval()


def tokens() -> torch.Tensor:
    return torch.randint(1, 99, (4, 12), generator=torch.Generator().manual_seed(5))


def turned_net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(10, 6), nn.Tanh(), Conv1D(14, 10), nn.Tanh(), nn.Linear(14, 4)).double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.normal_(std=0.5)
            layer.bias.normal_(std=0.5)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> float:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(number), dtype=DOUBLE)
    optimizer.zero_grad()
    loss = (model(x) - x[:, :4] * x[:, 2:]).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def trained(method, make=gpt2, steps: int = 6, **attach) -> tuple[nn.Module, realloc.Handle]:
    model = make()
    realloc.prepare(model, method)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=steps), **attach)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=tokens(), labels=torch.arange(4) % 3).loss.backward()
        optimizer.step()
    return model, handle


def calibrated(method):
    batch = {"input_ids": tokens(), "labels": torch.arange(4) % 3}
    return realloc.calibrate(gpt2(), [batch], method)


def test_training_is_that_of_lora_written_out():
    model, other = turned_net(), turned_net()
    realloc.prepare(model, methods.lora(rank=3, scale=2.0))
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    sites = realloc.attach(model, optimizer, methods.lora(rank=3, scale=2.0)).sites
    for name in ("0", "2"):
        layer = other[int(name)]
        other[int(name)] = Plain(layer.weight.t(), layer.bias, *sites[f"{name}.weight"].factors(), 2.0)
    reference = torch.optim.AdamW(trainable(other), lr=1e-2)
    for number in range(6):
        assert step(model, optimizer, number) == pytest.approx(step(other, reference, number), rel=1e-12)
        for name in ("0", "2"):
            for mine, theirs in zip(
                sites[f"{name}.weight"].factors(), (other[int(name)].a, other[int(name)].b), strict=True
            ):
                assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_the_weight_is_read_and_given_back_as_it_was_stored():
    model, plain = turned_net(), turned_net()
    realloc.prepare(model, methods.lora(rank=2, scale=0.5))
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    handle = realloc.attach(model, optimizer, methods.lora(rank=2, scale=0.5))
    for number in range(3):
        step(model, optimizer, number)
    a, b = handle.sites["0.weight"].factors()
    wanted = plain[0].weight + 0.5 * a.t() @ b
    assert model[0].weight.shape == (6, 10) and torch.allclose(model[0].weight, wanted)
    assert "rank=2" in repr(model[0]) and handle.sites["0.weight"].shape == (10, 6)
    optimizer.zero_grad()
    model[0].weight.square().sum().backward()
    whole = wanted.detach().requires_grad_()
    whole.square().sum().backward()
    grads = handle.sites["0.weight"].parts_of(model.realloc_pool0.grad)
    assert torch.allclose(grads[0], 0.5 * b @ whole.grad.t()) and torch.allclose(grads[1], 0.5 * a @ whole.grad)
    x = torch.randn(3, 2, 6, dtype=DOUBLE)
    before, twin = model(x), copy.deepcopy(model)
    handle.detach()
    assert type(model[0]) is Conv1D and "Conv1D" in repr(model[0]) and model[0].weight.is_contiguous()
    assert torch.allclose(model[0].weight, wanted) and torch.allclose(model(x), before)
    assert torch.allclose(twin(x), before) and twin[0].requires_grad_(False) is twin[0]
    assert twin[0].realloc_site.frozen and type(realloc.export.merged(twin)[2]) is Conv1D


@pytest.mark.parametrize("bf16", [False, True])
def test_autocast_and_a_compiled_graph_agree_with_the_eager_layer(bf16):
    model = gpt2()
    realloc.prepare(model, methods.lora(rank=2))
    with torch.no_grad():
        model.realloc_pool0.normal_(std=0.1)
        wanted = model(tokens()).logits
        if bf16:
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.allclose(model(tokens()).logits.float(), wanted, atol=0.1)
        else:
            torch._dynamo.reset()
            found = torch.compile(model, backend="aot_eager")(tokens()).logits
            torch._dynamo.reset()
            assert torch.allclose(found, wanted, atol=1e-5)


MADE = {
    "lora": lambda: methods.lora(rank=2, scale=1.5),
    "random_ranks": lambda: methods.random_ranks(rank=2, scale=1.5, drop=0.7),
    "adalora": lambda: methods.adalora(rank=2, scale=1.5),
    "para": lambda: methods.para(rank=2, scale=1.5),
    "rank_gradient": lambda: methods.rank_gradient(rank=2, scale=1.5, start=0.5),
    "eva": lambda: calibrated(methods.eva(rank=2, scale=1.5)),
    "gora": lambda: calibrated(methods.gora(rank=2, scale=1.5)),
    "fixed": lambda: methods.fixed({PLACES[0]: 3, PLACES[7]: 1}, scale=1.5),
}


@pytest.mark.parametrize("name", MADE)
def test_every_method_trains_gpt2_and_stock_peft_loads_it(name, tmp_path):
    record = Events()
    model, handle = trained(MADE[name](), record=record)
    assert [n.removesuffix(".weight") for n in handle.sites] == PLACES
    assert handle.held + handle.parked == handle.budget
    assert handle.moves or name in ("lora", "eva", "gora", "fixed")
    with torch.no_grad():
        wanted = model(tokens()).logits
        assert not torch.allclose(gpt2()(tokens()).logits, wanted, rtol=0, atol=1e-2)
    folder = realloc.export.peft(model, tmp_path / "adapter", base_model_name="base")
    assert json.loads((folder / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    again = peft.PeftModel.from_pretrained(gpt2(), folder).eval()
    plain = realloc.export.merged(model)
    assert plain.state_dict().keys() == gpt2().state_dict().keys()
    plain.save_pretrained(tmp_path / "merged")
    loaded = type(plain).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.allclose(again(tokens()).logits, wanted, rtol=0, atol=1e-5)
        assert torch.allclose(again.merge_and_unload()(tokens()).logits, wanted, rtol=0, atol=1e-5)
        assert torch.allclose(plain(tokens()).logits, wanted, rtol=0, atol=1e-5)
        assert torch.allclose(loaded(tokens()).logits, wanted, rtol=0, atol=1e-5)


def test_the_output_embedding_of_a_language_model_is_no_layer_of_its_ranks():
    table = realloc.prepare(gpt2("GPT2LMHeadModel"), methods.lora(rank=1), dry_run=True)
    assert [line.name.removesuffix(".weight") for line in table.sites] == PLACES
    shapes = {line.name.split(".", 3)[3]: line.shape for line in table.sites}
    assert shapes["mlp.c_fc.weight"] == (128, 32) and shapes["mlp.c_proj.weight"] == (32, 128)
    assert table.budget == 2 * sum(map(sum, shapes.values()))  # one rank, two blocks


def test_eva_and_gora_measure_a_turned_layer_as_its_twin():
    """The same numbers in an nn.Linear give the same ranks and the same first rows."""
    turned, plain = turned_net(), turned_net()
    for place in (0, 2):
        stored = plain[place]
        linear = nn.Linear(*stored.weight.shape).double()
        linear.load_state_dict({"weight": stored.weight.t(), "bias": stored.bias})
        plain[place] = linear
    batches = [torch.randn(12, 6, generator=torch.Generator().manual_seed(n), dtype=DOUBLE) for n in range(3)]
    for method in (methods.eva(rank=3, cap=5), methods.gora(rank=3, cap=5)):
        one, two = (
            realloc.calibrate(model, batches, method, loss=lambda m, x: (m(x) - x[:, :4]).square().mean())
            for model in (turned, plain)
        )
        assert one.ranks == two.ranks
        assert all(torch.allclose(one.rows[key], two.rows[key], atol=1e-8) for key in two.rows)
    assert type(turned[0]) is Conv1D


def test_a_peft_model_of_gpt2_is_taken_over(tmp_path):
    def wrapped():
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True,
                                 task_type="SEQ_CLS")  # fmt: skip
        model = peft.get_peft_model(gpt2(), config).eval()
        torch.manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        return model

    source, model = wrapped(), wrapped()
    reference = torch.optim.AdamW(trainable(source), lr=1e-2)
    realloc.prepare(model, methods.lora(rank=3))
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    realloc.attach(model, optimizer, methods.lora(rank=3))
    for _ in range(4):
        losses = []
        for one, opt in ((source, reference), (model, optimizer)):
            opt.zero_grad()
            loss = one(input_ids=tokens(), labels=torch.arange(4) % 3).loss
            loss.backward()
            opt.step()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with torch.no_grad():
        wanted = model(tokens()).logits
        again = peft.PeftModel.from_pretrained(gpt2(), realloc.export.peft(model, tmp_path)).eval()
        assert torch.allclose(again(tokens()).logits, wanted, rtol=0, atol=1e-5)


def test_a_conv1d_of_another_library_is_refused():
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 3))

    with pytest.raises(ConfigError, match=r"0 is a Conv1D, no nn\.Linear, and cannot hold ranks"):
        realloc.prepare(nn.Sequential(Conv1D(), nn.Linear(3, 2)), methods.lora(rank=1).on("0"))
