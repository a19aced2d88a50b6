"""A layer run once more, on what entered it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from realloc.observe.entering import Entering

SMALL: dict[str, Any] = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
LAYERS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaModel(transformers.LlamaConfig(**SMALL, intermediate_size=24)),
    "gpt2": lambda: transformers.GPT2Model(transformers.GPT2Config(vocab_size=40, n_layer=2, n_head=2, n_embd=16)),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL, intermediate_size=24)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_second_run_gives_the_same_and_lengthens_no_keys(name: str) -> None:
    torch.manual_seed(0)
    model = LAYERS[name]().eval()
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    seen: dict[str, Any] = {}
    blocks[1].register_forward_pre_hook(lambda _, args, kwargs: seen.update(enters=(args, kwargs)), with_kwargs=True)
    blocks[1].register_forward_hook(lambda _, args, output: seen.update(leaves=output))
    ids = torch.randint(3, 40, (3, 5), generator=torch.Generator().manual_seed(0))
    found = model(input_ids=ids)
    enters, leaves = seen["enters"], seen["leaves"]
    entered = Entering.of(*enters)
    assert not entered.hidden.requires_grad and entered.hidden.data_ptr() != enters[0][0].data_ptr()
    for _ in range(2):
        again = entered.run(blocks[1])
        assert torch.equal(again, leaves if torch.is_tensor(leaves) else leaves[0])
    cache = getattr(found, "cache", None) or getattr(found, "past_key_values", None)
    assert name == "bert" or cache.get_seq_length(1) == 5


def test_activations_by_keyword_and_other_activations() -> None:
    entered = Entering.of((), {"hidden_states": torch.ones(2, 3, requires_grad=True), "flag": True})
    assert entered.kwargs["flag"] is True and not entered.hidden.requires_grad
    other = entered.on(torch.zeros(2, 3))
    assert bool((other.hidden == 0).all()) and bool((entered.hidden == 1).all())
    assert torch.equal(Entering.of((torch.ones(2, 3), 7), {}).on(torch.zeros(1)).args[0], torch.zeros(1))
