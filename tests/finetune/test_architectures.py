"""The families of models that people fine-tune: each trains, is saved, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from made_texts import WORDS

from realloc.finetune.config import finetune_config
from realloc.finetune.head import with_head
from realloc.finetune.run import finetune

SIZE = len(WORDS) + 4
KINDS: dict[str, Any] = {
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(
        vocab_size=SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=66, pad_token_id=0,
    )),
    "distilbert": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(
        vocab_size=SIZE, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
    )),
    "deberta": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(
        vocab_size=SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"],
    )),
    "gpt2": lambda: transformers.GPT2Model(transformers.GPT2Config(
        vocab_size=SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=3
    )),
    "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(
        vocab_size=SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64,
    )),
}  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    found = {}
    for name, make in KINDS.items():
        found[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        make().save_pretrained(found[name])
        transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(found[name])
    return found


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("method", ["full", "topk", "peft_lora", "lora"])
@pytest.mark.parametrize("name", KINDS)
def test_a_family_trains_and_comes_back(
    name: str, method: str, folders: dict[str, Path], table: Path, judging: Path, tmp_path: Path
) -> None:
    asked = finetune_config({
        "model": str(folders[name]), "data": str(table), "eval": str(judging), "method": method, "epochs": 2,
        "batch_size": 16, "threads": 1, "settings": {"k": 1} if method == "topk" else {},
    })  # fmt: skip
    result = finetune(asked, tmp_path / "out")
    saved = tmp_path / "out" / "model"
    if "rank" in result.settings:
        from peft import PeftModel

        base = transformers.AutoModel.from_pretrained(folders[name])
        base = PeftModel.from_pretrained(base, saved)
    else:
        base = transformers.AutoModel.from_pretrained(saved)
    model = with_head(base, saved)
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    classes, right = ("bad", "fine", "good"), 0
    lines = judging.read_text().splitlines()[1:]
    with torch.no_grad():
        for line in lines:
            text, _, label = line.partition(",")
            batch = tokenizer(text, return_tensors="pt")
            right += classes[int(model(batch["input_ids"], batch["attention_mask"]).argmax())] == label
    assert result.test_accuracy is not None and abs(right / len(lines) - result.test_accuracy) < 0.02
