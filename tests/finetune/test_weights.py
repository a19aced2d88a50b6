"""Models from outside: what is refused, and how; never any code of theirs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from made_texts import rows, write

import realloc.finetune.scene as scene
from realloc.errors import ConfigError
from realloc.finetune.config import finetune_config
from realloc.finetune.head import with_head


def prepared(model: Path | str, table: Path, **more: Any) -> scene.Scene:
    return scene.prepared(finetune_config({"model": str(model), "data": str(table), "method": "full", **more}))


def changed(tiny: Path, target: Path, **settings: Any) -> Path:
    shutil.copytree(tiny, target)
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return target


def test_a_quantised_base_is_refused_before_its_weights_are_read(tiny: Path, table: Path, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path / "q", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="is quantised, and training moves its weights; give a folder with float32"):
        prepared(folder, table)


def test_an_unknown_architecture_is_refused(tiny: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be loaded .*ringformer.*of an architecture that transformers has"):
        prepared(changed(tiny, tmp_path / "u", model_type="ringformer"), table)
    seq = tmp_path / "seq"
    transformers.T5Config(vocab_size=84, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2).save_pretrained(seq)
    with pytest.raises(ConfigError, match=r"is an encoder with a decoder \(t5\)"):
        prepared(seq, table)


def test_code_in_a_models_folder_never_runs(tiny: Path, table: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = changed(
        tiny, tmp_path / "code", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Model"}
    )
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').write('x')\n")
    with pytest.raises(ConfigError, match="needs code of its own, which is never run"):
        prepared(folder, table)
    assert not mark.exists() and not any(name.rpartition(".")[2] == "own" for name in sys.modules)


def test_pickled_weights_are_not_read(tiny: Path, table: Path, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path / "pickle")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"cannot be loaded .*safetensors"):
        prepared(folder, table)


def test_a_damaged_file_of_weights(tiny: Path, table: Path, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 not json at all")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        prepared(folder, table)


def test_folders_and_names(tiny: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        prepared(tmp_path, table)
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        prepared(table, table)
    with pytest.raises(ConfigError, match="does not exist; check the path"):
        prepared(tmp_path / "nowhere", table)
    with pytest.raises(
        ConfigError, match=r"nothing is downloaded: .*hf download no/where; or give a folder, or minilm"
    ):
        prepared("no/where", table)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        prepared(broken, table)


def test_a_tokenizer_of_another_model_and_texts_longer_than_the_model_reads(
    tiny: Path, table: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"tokens 65 is more than .* reads; take --tokens 64 or less"):
        prepared(tiny, table, tokens=65)
    assert prepared(tiny, table).loaded.tokens == 64
    other = tmp_path / "other"
    config = transformers.BertConfig.from_pretrained(tiny)
    config.vocab_size = 60
    transformers.BertModel(config).save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(other)
    with pytest.raises(ConfigError, match="has 84 tokens and the model embeds 60: they are not of one model"):
        prepared(other, table)


def test_an_encoder_is_no_language_model(tiny: Path, decoder: Path, tmp_path: Path) -> None:
    """Its attention sees the very tokens that it should foretell: it would learn to copy them."""
    text = tmp_path / "t.txt"
    text.write_text("good jacket bad\n" * 200)
    assert prepared(decoder, text, task="causal-lm", tokens=16).train.rows
    with pytest.raises(ConfigError, match="is an encoder; give a decoder"):
        prepared(tiny, text, task="causal-lm", tokens=16)


def test_texts_without_a_token_are_named_also_in_the_evaluation_file(tiny: Path, table: Path, tmp_path: Path) -> None:
    empty = [*rows(20, 0), ("\u200b", "bad")]
    with pytest.raises(ConfigError, match=r"t\.csv, row 22: the text .* has no token of this model; drop the row"):
        prepared(tiny, write(tmp_path / "t.csv", empty))
    with pytest.raises(ConfigError, match=r"e\.csv, row 22: the text .* has no token"):
        prepared(tiny, table, eval=str(write(tmp_path / "e.csv", empty)))


def test_the_pooler_that_nothing_reads_neither_trains_nor_is_lost(tiny: Path, table: Path, tmp_path: Path) -> None:
    made = prepared(tiny, table)
    assert not any(p.requires_grad for name, p in made.loaded.model.named_parameters() if "pooler" in name)
    assert {name.split(".")[0] for name, _ in made.loaded.model.named_parameters()} == {"bert", "classifier"}
    with pytest.raises(ConfigError, match=r"holds no head\.safetensors"):
        with_head(made.loaded.base, tmp_path)


def test_a_model_without_layers_is_refused(table: Path, tmp_path: Path, tiny: Path) -> None:
    folder = tmp_path / "flat"
    config = transformers.BertConfig.from_pretrained(tiny)
    config.num_hidden_layers = 1
    transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    with pytest.raises(ConfigError, match="has one layer only"):
        prepared(folder, table)
