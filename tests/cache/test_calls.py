"""What reaches the frozen layers beside the tokens, which rows stand together, and what outlives a checkpoint."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from zoo import SIZES, batch, bert, fresh, gpt2, stack, texts, train

import realloc
from realloc import Cache, methods
from realloc.attach_layers import register_layers
from realloc.errors import ConfigError, ReallocWarning, StateError

WORDS = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])}


def ernie() -> nn.Module:
    config = transformers.ErnieConfig(
        **SIZES, num_labels=2, use_task_id=True, task_type_vocab_size=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.ErnieForSequenceClassification(config)


def opt(layerdrop: float) -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=60, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=64, num_labels=2, dropout=0.0, layerdrop=layerdrop, pad_token_id=1,
    )  # fmt: skip
    return transformers.OPTForSequenceClassification(config)


# what a call brings -----------------------------------------------------------------------------------------------


def test_inputs_that_no_key_holds_are_computed_and_said() -> None:
    model, optimizer = fresh(ernie)
    handle = realloc.attach(model, optimizer, methods.topk(1))
    tasks = torch.zeros_like(WORDS["input_ids"])
    with pytest.warns(ReallocWarning, match="RA101.*it got task_type_ids"):
        first, second = (model(**WORDS, task_type_ids=tasks + n).logits for n in (0, 1))
    assert not torch.equal(first, second) and handle.hits is None
    model(**WORDS)
    assert handle.hits == 0.0  # without them it is read


def test_what_only_the_loss_reads_is_no_reason() -> None:
    model, optimizer = fresh(bert)
    handle = realloc.attach(model, optimizer, methods.topk(1))
    for _ in range(2):
        model.bert(**WORDS, num_items_in_batch=torch.tensor(2))
    assert handle.hits == 0.5


def test_a_model_that_skips_layers_at_random_is_refused_with_the_remedy_which_works() -> None:
    model, optimizer = fresh(lambda: opt(0.5))
    with pytest.raises(ConfigError, match=r"OPTDecoder skips whole layers at random \(layerdrop=0.5\).*to 0.0"):
        realloc.attach(model, optimizer, methods.topk(1))
    realloc.attach(model, optimizer, methods.topk(1, cache=None)).detach()
    for module in model.modules():
        if hasattr(module, "layerdrop"):
            module.layerdrop = 0.0
    handle = realloc.attach(model, optimizer, methods.topk(1))
    found = [model(**WORDS, attention_mask=torch.ones_like(WORDS["input_ids"])).logits for _ in range(4)]
    assert all(torch.equal(found[0], one) for one in found) and handle.hits == 0.75


def test_a_frozen_layer_that_is_skipped_later_is_no_wrong_number() -> None:
    model, optimizer = fresh(lambda: opt(0.0))
    realloc.attach(model, optimizer, methods.topk(1))
    mask = torch.ones_like(WORDS["input_ids"])
    model(**WORDS, attention_mask=mask)
    model.model.decoder.layerdrop = 0.5  # after attach
    torch.manual_seed(0)
    with pytest.raises(StateError, match=r"OPTDecoder skipped the last frozen layer.*cache=None"):
        for _ in range(50):
            model(**WORDS, attention_mask=mask)


# rows that stand together -----------------------------------------------------------------------------------------


class Mixer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize("sizes", [(2,), (1, 2), (1, 1, 3)])
def test_layers_that_mix_rows_are_noticed_in_small_batches(sizes: tuple[int, ...]) -> None:
    model, optimizer = fresh(lambda: stack(noise=Mixer()))
    realloc.attach(model, optimizer, methods.topk(1))
    with pytest.raises(StateError, match="a layer that mixes examples"):
        for size in sizes:
            model(torch.randn(size, 6))


@pytest.mark.parametrize("make", [bert, gpt2])
def test_autocast_of_the_user_is_no_reason_to_refuse(make: Any) -> None:
    model, optimizer = fresh(make)
    handle = realloc.attach(model, optimizer, methods.topk(1, cache=Cache(dtype="bfloat16")))
    rows, _ = texts()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            for start in (0, 7, 14):
                model(**batch(rows, [*range(start, start + 7)])).logits.sum().backward()
    assert handle.hits == 0.5


# steps that look --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [None, Cache()])
def test_dropout_below_stays_off_in_a_step_that_looks_at_every_gradient(cache: Cache | None) -> None:
    """As the Trainer does it: train() in every step."""
    found = []
    for often in (True, False):
        model, optimizer = fresh(lambda: bert(0.3))
        method = methods.layer_gradient(0.6, cache=cache)
        realloc.attach(model, optimizer, method, schedule=realloc.every(2, total=8))
        torch.manual_seed(0)
        rows, labels = texts()
        for step in range(4):
            if often or not step:
                model.train()
            nn.functional.cross_entropy(model(**batch(rows, [0, 1, 2])).logits, labels[:3]).backward()
            asleep = not model.bert.embeddings.dropout.training
            assert asleep == (not any(p.requires_grad for p in model.bert.embeddings.parameters())) or step % 2
            optimizer.step()
            optimizer.zero_grad()
        found.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_a_load_in_a_step_that_looks_lets_it_look() -> None:
    model, optimizer = fresh(bert)
    handle = realloc.attach(model, optimizer, methods.layer_gradient(0.6), schedule=realloc.every(1, total=9))
    train(model, optimizer, 2)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    rows, _ = texts()
    model(**batch(rows, [0, 1, 2])).logits.sum().backward()
    engine = handle._engine
    assert all(any(p.grad is not None for p in layer) for layer in engine.layers)


# what a checkpoint remembers --------------------------------------------------------------------------------------


def test_a_cache_that_was_switched_off_stays_off() -> None:
    model, optimizer = fresh(bert)
    handle = realloc.attach(model, optimizer, methods.topk(2, cache=Cache(epoch=24)))
    draw = torch.Generator().manual_seed(0)
    with pytest.warns(ReallocWarning, match=r"RA103.*off"):
        for _ in range(8):
            model(torch.randint(5, 60, (8, 5), generator=draw)).logits.sum().backward()
    state = copy.deepcopy(model.state_dict())
    handle.train([1, 2, 3])  # another prefix
    model(**WORDS)
    assert handle.hits is None
    again, other = fresh(bert)
    its = realloc.attach(again, other, methods.topk(2, cache=Cache(epoch=24)))
    again.load_state_dict(state)
    again(**WORDS)
    assert its.hits is None and its.cached_bytes == 0


def test_an_epoch_of_examples_that_are_several_rows_each() -> None:
    """As a callback tells it: 6 questions with 4 choices each."""
    from realloc.cache.settings import TOLD

    rows = torch.randint(5, 50, (24, 5), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for told in (True, False):
            model, optimizer = fresh(bert)
            handle = realloc.attach(model, optimizer, methods.topk(1, cache=Cache(epoch=TOLD)))
            for epoch in range(3):
                for start in range(0, 24, 8):
                    model(rows[start : start + 8])
                if told:
                    handle.epoch_over(6)
                assert handle.hits == pytest.approx(epoch / (epoch + 1))
    model, optimizer = fresh(bert)
    handle = realloc.attach(model, optimizer, methods.topk(1, cache=Cache(epoch=TOLD)))
    with pytest.warns(ReallocWarning, match="RA103"):  # other rows in each epoch: noticed after the second
        for epoch in range(3):
            for start in range(0, 24, 8):
                model((rows + epoch)[start : start + 8])
            handle.epoch_over(6)
            assert (handle.hits is None) == (epoch == 2) or epoch == 1


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_cut_anywhere_leaves_a_cache_on_that_pays(cut: int, tmp_path: Path) -> None:
    """40 texts, 10 batches an epoch, whose length a callback tells; the file is kept."""
    from realloc.cache.settings import TOLD

    rows = torch.randint(5, 50, (40, 5), generator=torch.Generator().manual_seed(0))

    def start() -> tuple[Any, Any]:
        model, optimizer = fresh(bert)
        method = methods.topk(1, cache=Cache(epoch=TOLD, file=tmp_path / "rows"))
        return model, realloc.attach(model, optimizer, method)

    model, handle = start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(50):
            if number == cut:
                state = copy.deepcopy(model.state_dict())
                handle.detach()
                model, handle = start()
                model.load_state_dict(state)
            model(rows[number * 4 % 40 :][:4])
            if number % 10 == 9:
                handle.epoch_over(40)
    assert handle.hits == pytest.approx(160 / 200)


def test_an_epoch_that_was_begun_by_another_process_does_not_count() -> None:
    """6 questions with 4 choices each; a checkpoint lies after the fifth."""
    from realloc.cache.settings import TOLD

    rows = torch.randint(5, 50, (24, 5), generator=torch.Generator().manual_seed(0))
    model, optimizer = fresh(bert)
    realloc.attach(model, optimizer, methods.topk(1, cache=Cache(epoch=TOLD)))
    state = copy.deepcopy(model.state_dict())
    again, other = fresh(bert)
    register_layers(again, methods.topk(1), 0)
    again.load_state_dict(state)
    handle = realloc.attach(again, other, methods.topk(1, cache=Cache(epoch=TOLD)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again(rows[20:])
        handle.epoch_over(6)
        for _ in range(2):
            for start in range(0, 24, 8):
                again(rows[start : start + 8])
            handle.epoch_over(6)
    assert handle.hits == pytest.approx(28 / 52)


def test_scalars_that_no_key_holds_are_computed_and_said() -> None:
    class Task(transformers.BertModel):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, task: int | None = None, **more: Any) -> Any:
            return super().forward(input_ids + (task or 0), attention_mask, **more)

    model, optimizer = fresh(lambda: Task(bert().config))
    handle = realloc.attach(model, optimizer, methods.topk(1))
    with pytest.warns(ReallocWarning, match="RA101.*it got task"):
        first, second = (model(**WORDS, task=task)[0] for task in (1, 2))
    assert not torch.equal(first, second) and handle.hits is None
