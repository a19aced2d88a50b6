"""Heads and feed-forward units of transformers: found, moved with the function kept, trained on; or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wide_nets import DOUBLE, attached, data, noted_moves, widths

import realloc
from realloc import methods
from realloc.errors import ConfigError
from realloc.find_blocks import heads_and_units
from realloc.grow.gradmax import gradmax
from realloc.grow.split import split
from realloc.grow.zero_output import zero_output
from realloc.methods.width_method import WidthMethod
from realloc.schedule import linear
from realloc.scores.neuron_random import neuron_random, want_neuron_random

transformers = pytest.importorskip("transformers")
IDS = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
ENCODER = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 20, "pad_token_id": 0,
}  # fmt: skip
DECODER = ENCODER | {"num_key_value_heads": 2}
DISTILLED = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 20}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertConfig", ENCODER), "DistilBert": ("DistilBertConfig", DISTILLED), "Llama": ("LlamaConfig", DECODER),
    "Qwen3": ("Qwen3Config", DECODER | {"head_dim": 4}), "Roberta": ("RobertaConfig", ENCODER),
}  # fmt: skip


def made(name: str) -> nn.Module:
    """A model with weights so large that every head counts."""
    config, settings = MODELS[name]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**settings)).to(DOUBLE)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(10.0)
    return model.train()


def hidden(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        found = model(IDS).last_hidden_state
    model.train()
    return found


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    model.eval()  # no dropout: the same loss twice
    loss = (model(IDS).last_hidden_state - 1.0).square().mean()
    model.train()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize(
    ("name", "heads", "blocks"),
    [
        ("Bert", 4, (4, 4, 4, 4)),
        ("DistilBert", 4, (4, 4, 4, 4)),
        ("Llama", 2, (8, 4, 4, 8)),
        ("Qwen3", 2, (8, 4, 4, 8)),
    ],
)
def test_groups_are_found(name: str, heads: int, blocks: tuple[int, ...]) -> None:
    """Grouped-query heads move with the queries that share their keys."""
    found = heads_and_units(made(name)).found
    assert [one.width for one in found] == [heads, 24, heads, 24]
    assert tuple(side.block for side in (*found[0].makers, *found[0].readers)) == blocks
    assert {side.block for side in found[1].sides} == {1} and len(found[1].makers) == (2 if blocks[0] == 8 else 1)


@pytest.mark.filterwarnings("ignore:.*RA00")
@pytest.mark.parametrize("rule", [zero_output, split], ids=["zero_output", "split"])
@pytest.mark.parametrize("name", MODELS)
def test_growth_of_heads_and_units_keeps_the_function_and_training_goes_on(name: str, rule: Any) -> None:
    model, seen = made(name), list[Tensor]()
    method = WidthMethod("growing", keep=neuron_random, want=want_neuron_random, grow=rule, held=linear(0.2, 1.0))
    optimizer, handle = attached(
        method, model, gap=1, total=4, lr=0.0, optimizer=torch.optim.SGD, before_move=lambda: seen.append(hidden(model))
    )
    start = widths(handle)
    step(model, optimizer)
    small = widths(handle)
    assert all(small[group] <= start[group] for group in start) and small != start
    assert float((hidden(model) - seen[0]).abs().max()) > 1e-3, "weights so small that no head counts"
    grown = dict.fromkeys(small, 0)
    for _ in range(3):
        before = widths(handle)
        step(model, optimizer)
        assert torch.allclose(hidden(model), seen[-1], rtol=0, atol=1e-10)
        for group, width in widths(handle).items():
            grown[group] += width - before[group]
    heads = [count for group, count in grown.items() if "att" in group]
    assert sum(heads) >= 2 and sum(grown.values()) - sum(heads) >= 10
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    assert step(model, optimizer) > step(model, optimizer)


@pytest.mark.filterwarnings("ignore:.*RA00")
@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Llama"])
def test_heads_are_really_fewer(name: str) -> None:
    model, plain = made(name), made(name)
    optimizer, handle = attached(methods.narrow(0.5, window=2), model, gap=2, total=8)
    shapes = {n: tuple(p.shape) for n, p in plain.named_parameters()}
    for _ in range(8):
        step(model, optimizer)
    handle.compact()
    dense = realloc.export.dense(model)
    assert torch.equal(hidden(dense), hidden(model))
    assert sum(dense.get_parameter(n).numel() for n in handle.sites) == handle.held == handle.budget
    now = widths(handle)
    for found in heads_and_units(plain).found:
        for side in found.makers:
            name_of = next(n for n, m in plain.named_modules() if m is side.module)
            layer = dense.get_submodule(name_of)
            assert layer.weight.shape[0] == now[found.name] * side.block == layer.out_features
    assert any(dense.get_parameter(n).shape != shapes[n] for n in shapes)
    heads = [now[group] for group in now if "att" in group]
    assert min(heads) < (2 if name == "Llama" else 4)
    handle.detach()
    assert torch.equal(hidden(dense), hidden(model)) and step(model, optimizer) > step(model, optimizer)


@pytest.mark.filterwarnings("ignore")  # the library renames its arguments from time to time
def test_a_cache_of_keys_holds_as_many_heads_as_each_layer_has() -> None:
    model = made("Llama")
    optimizer, handle = attached(methods.random_widths(drop=0.5, mature=0).on("*self_attn*"), model, gap=1, total=10)
    for _ in range(8):
        step(model, optimizer)
    heads = [*widths(handle).values()]
    assert handle.units_moved and heads != [2, 2]
    model.eval()
    with torch.no_grad():
        whole = model(IDS).last_hidden_state
        first = model(IDS[:, :5], use_cache=True)
        assert [layer.keys.shape[1] for layer in first.past_key_values.layers] == heads
        rest = model(IDS[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    assert torch.allclose(rest.last_hidden_state, whole[:, 5:], rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*RA00")
@pytest.mark.parametrize(("name", "pattern"), [("Bert", "*intermediate.dense"), ("DistilBert", "*ffn.lin1")])
def test_gradmax_between_the_layers_of_a_feed_forward_block(name: str, pattern: str) -> None:
    """The bias behind takes back what GELU gives at 0.01, which is not 0.01."""
    model, seen = made(name), list[Tensor]()
    method = WidthMethod("growing", keep=neuron_random, want=want_neuron_random, grow=gradmax, held=linear(0.3, 1.0))
    optimizer, handle = attached(
        method.on(pattern), model, gap=1, total=3, lr=0.0, optimizer=torch.optim.SGD,
        before_move=lambda: seen.append(hidden(model)),
    )  # fmt: skip
    assert handle._holdings.wide[0].space.levels == pytest.approx([0.01 * 0.50399, 0.01 * 0.50399], rel=1e-4)
    step(model, optimizer)
    for _ in range(2):
        before = sum(widths(handle).values())
        step(model, optimizer)
        assert sum(widths(handle).values()) > before + 5
        assert torch.allclose(hidden(model), seen[-1], rtol=0, atol=1e-10)
    with pytest.raises(ConfigError, match=r"gradmax finds new units by gradient.*attention.*is not so: leave it out"):
        realloc.prepare(made(name), methods.gradmax())


def test_heads_start_with_the_fan_in_of_a_layer_and_biases_at_zero(monkeypatch: Any) -> None:
    moves, model = noted_moves(monkeypatch), made("Bert")
    method = WidthMethod("growing", keep=neuron_random, want=want_neuron_random, held=linear(0.2, 1.0))
    optimizer, _ = attached(method.on("*query"), model, gap=1, total=2, lr=0.0, optimizer=torch.optim.SGD)
    step(model, optimizer)
    step(model, optimizer)
    new = {group: (old < 0).nonzero().flatten() for group, old in moves[-1][1].items()}
    values = []
    for layer in range(2):
        attention = model.encoder.layer[layer].attention.self
        heads = new[f"encoder.layer.{layer}.attention.self.query"]
        rows = (heads[:, None] * 4 + torch.arange(4)).flatten()
        for part in (attention.query, attention.key, attention.value):
            values.append(part.weight[rows].detach().flatten())
            assert not part.bias[rows].any()
        assert not model.encoder.layer[layer].attention.output.dense.weight[:, rows].any()
    drawn = torch.cat(values)
    assert len(drawn) >= 192 and float(drawn.abs().max()) <= 16**-0.5
    assert float(drawn.std()) == pytest.approx((3 * 16) ** -0.5, rel=0.1)


@pytest.mark.parametrize(
    ("config", "settings", "layer", "word"),
    [
        ("BigBirdConfig", ENCODER, "encoder.layer.0.attention.self.query", "reads num_attention_heads"),
        ("RoFormerConfig", ENCODER, "encoder.layer.0.attention.self.query", "reads all_head_size"),
        ("Olmo2Config", DECODER, "layers.0.self_attn.q_proj", "has q_norm.weight beside its layers"),
        ("BitNetConfig", DECODER, "layers.0.mlp.gate_proj", "has ffn_sub_norm.weight beside its layers"),
        ("IBertConfig", ENCODER, "encoder.layer.0.intermediate.dense", "is a QuantLinear and no plain nn.Linear"),
    ],
)  # fmt: skip
def test_attention_that_would_not_follow_is_refused_by_name(
    config: str, settings: dict[str, Any], layer: str, word: str
) -> None:
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**settings))
    with pytest.raises(ConfigError, match=rf"the width of '{layer}' cannot move: .*{word}"):
        realloc.prepare(model, methods.width().on(layer))


def test_attention_that_does_not_say_how_large_a_head_is() -> None:
    model = made("Bert")
    for layer in model.encoder.layer:
        del layer.attention.self.attention_head_size
    with pytest.raises(ConfigError, match=r"query' cannot move: the size of its heads is not known"):
        realloc.prepare(model, methods.width().on("*query"))


@pytest.mark.filterwarnings("ignore")  # torch says that nested tensors are a prototype
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_torchs_own_encoder_layers_in_the_fast_path_of_eval(activation: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, activation=activation, batch_first=True, dropout=0.0)
    model, seen = nn.TransformerEncoder(layer, 2).to(DOUBLE), list[Tensor]()
    x = data(0, 5, 8, rows=3)

    def look() -> Tensor:
        with torch.no_grad():
            found = model.eval()(x)
        model.train()
        return found

    method = WidthMethod("growing", keep=neuron_random, want=want_neuron_random, grow=gradmax, held=linear(0.3, 1.0))
    optimizer, handle = attached(
        method, model, gap=1, total=3, lr=0.0, optimizer=torch.optim.SGD, before_move=lambda: seen.append(look())
    )
    assert [*widths(handle).values()] == [12, 12]
    for number in range(3):
        optimizer.zero_grad()
        (model(x) - 1.0).square().mean().backward()
        optimizer.step()
        assert not number or torch.allclose(look(), seen[-1], rtol=0, atol=1e-10)
    dense = realloc.export.dense(model)
    assert handle.units_moved >= 4 and torch.allclose(dense.eval()(x), look(), rtol=0, atol=1e-12)
    assert torch.allclose(model(x), look(), rtol=0, atol=1e-10)  # the slow path of training gives the same


def test_flops_of_heads_say_that_their_own_products_do_not_count() -> None:
    told = "of attention its layers count, not the products of queries with keys, weights with values"
    for patterns, said in ((("*attention*",), True), (("*intermediate.dense",), False)):
        table = realloc.prepare(made("Bert"), methods.width(currency="FLOPs").on(*patterns), dry_run=True)
        assert (told in str(table)) == said
