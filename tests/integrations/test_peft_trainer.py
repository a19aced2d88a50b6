"""A peft model under the Trainer: its checkpoints hold the ranks and their places, and stock peft loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from test_trainers import METHODS, SIZE, STEPS, Sequential, Texts, alike, arguments, bert, every, pytestmark, weights
from torch import Tensor, nn

from realloc import methods
from realloc.errors import ConfigError, RecordError, StateError
from realloc.integrations.adapter import ADAPTER, SEAL, STATE
from realloc.integrations.transformers import ReallocCallback

__all__ = ["pytestmark"]
RANKS = {"adalora": lambda: methods.adalora(rank=4), "random_ranks": lambda: methods.random_ranks(rank=4)}
LAYERS = ("topk", "lisa", "egeria")
RATES = ("llrd", "loss_change")
SAVES = {"save_strategy": "steps", "save_steps": 5, "learning_rate": 2e-2}


def wrapped() -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["query", "value"], task_type="SEQ_CLS")
    return peft.get_peft_model(bert(), config)


def trainer(
    name: str, folder: Path, model: nn.Module | None = None, **more: Any
) -> tuple[transformers.Trainer, ReallocCallback]:
    callback = ReallocCallback((METHODS | RANKS)[name](), every=every(name))
    rate = more.pop("learning_rate", 1e-3)
    args = arguments(folder, **more)
    args.learning_rate = rate
    made = Sequential(model=model or wrapped(), args=args, train_dataset=Texts(), callbacks=[callback])
    return made, callback


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, 40, (SIZE, 6), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


@pytest.mark.parametrize("name", [*RANKS, *LAYERS, *RATES])
def test_it_resumes_and_stock_peft_loads_every_checkpoint(name: str, tmp_path: Path) -> None:
    whole, first = trainer(name, tmp_path, **SAVES)
    whole.train()
    again, second = trainer(name, tmp_path, **SAVES)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert first.handle is not None and second.handle is not None
    assert second.handle.steps == STEPS
    alike(second.handle.state(), first.handle.state())
    for (key, mine), theirs in zip(weights(again.model).items(), weights(whole.model).values(), strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=1e-6), key
    whole.save_model(str(tmp_path / "final"))
    stock = peft.PeftModel.from_pretrained(bert(), tmp_path / "final")
    assert torch.allclose(logits(stock), logits(whole.model), rtol=0, atol=1e-5)
    head = {k: v for k, v in peft.load_peft_weights(str(tmp_path / "final")).items() if "classifier" in k}
    assert head and not torch.allclose(logits(stock), logits(bert()), rtol=0, atol=1e-3)
    peft.PeftModel.from_pretrained(bert(), tmp_path / "checkpoint-5")


@pytest.mark.parametrize("name", [*RANKS, "lisa", "loss_change"])
def test_the_best_model_comes_back(name: str, tmp_path: Path) -> None:
    class Turning(Sequential):
        """Judges by the step, so that the best is an early one."""

        def evaluate(self, *rest: Any, **more: Any) -> dict[str, float]:
            found: dict[str, float] = super().evaluate(*rest, **more)
            seen.append(logits(self.model))
            return {**found, "eval_loss": abs(self.state.global_step - 4.0)}

    seen: list[Tensor] = []
    callback = ReallocCallback((METHODS | RANKS)[name](), every=3)
    args = arguments(
        tmp_path, save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4, load_best_model_at_end=True
    )
    args.learning_rate = 2e-2
    made = Turning(model=wrapped(), args=args, train_dataset=Texts(), eval_dataset=Texts(), callbacks=[callback])
    made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert torch.allclose(logits(made.model), seen[0], rtol=0, atol=1e-6)
    assert not torch.allclose(seen[-1], seen[0], rtol=0, atol=1e-3)


def test_after_detach_only_plain_weights_can_be_saved(tmp_path: Path) -> None:
    made, callback = trainer("adalora", tmp_path)
    made.train()
    wanted = logits(made.model)
    assert callback.handle is not None
    callback.handle.detach()
    with pytest.raises(StateError, match=r"merge_and_unload\(\)\.save_pretrained"):
        made.save_model(str(tmp_path / "lost"))
    assert not (tmp_path / "lost" / ADAPTER).exists()
    made.model.merge_and_unload().save_pretrained(tmp_path / "plain")
    plain = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert torch.allclose(logits(plain), wanted, rtol=0, atol=1e-5)


def test_a_checkpoint_that_is_not_whole_or_of_another_run_is_refused(tmp_path: Path) -> None:
    made, _ = trainer("adalora", tmp_path)
    made.save_model(str(tmp_path / "a"))
    before = weights(made.model)

    def refused(error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            made.model.load_adapter(str(tmp_path / "a"), "default")
        assert all(torch.equal(value, before[key]) for key, value in weights(made.model).items())

    seal, state = (tmp_path / "a" / SEAL).read_bytes(), (tmp_path / "a" / STATE).read_bytes()
    (tmp_path / "a" / SEAL).unlink()
    refused(RecordError, r"has no realloc_state\.json")
    (tmp_path / "a" / SEAL).write_bytes(seal)
    (tmp_path / "a" / STATE).write_bytes(state[:-1] + bytes([state[-1] ^ 1]))
    refused(RecordError, r"do not belong together")
    (tmp_path / "a" / STATE).unlink()
    refused(RecordError, r"do not belong together")
    other, _ = trainer("lisa", tmp_path)
    other.save_model(str(tmp_path / "a"))
    refused(StateError, r"another model or method")
    with pytest.raises(StateError, match=r"'second' cannot stand beside it"):
        made.model.load_adapter(str(tmp_path / "a"), "second")
    with pytest.raises(ConfigError, match=r"is saved whole"):
        made.model.save_pretrained(str(tmp_path / "b"), selected_adapters=["second"])


def test_models_whose_checkpoints_would_lose_what_moves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"touched_rows moves what no adapter"):
        trainer("touched_rows", tmp_path)
    added = peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["query"]), bert())
    added._hf_peft_config_loaded = True  # as add_adapter() does, which asks for a newer peft than this one
    with pytest.raises(ConfigError, match=r"add_adapter.*get_peft_model"):
        trainer("adalora", tmp_path, added)
    scaled = peft.IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    with pytest.raises(ConfigError, match=r"has no LoRA layers"):
        trainer("adalora", tmp_path, peft.get_peft_model(bert(), scaled))


def test_the_plain_model_that_a_refusal_names_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"spiel moves .*merge_and_unload\(\)"):
        trainer("spiel", tmp_path)
    made, callback = trainer("spiel", tmp_path, wrapped().merge_and_unload())
    made.train()
    assert callback.handle is not None and callback.handle.steps == STEPS
