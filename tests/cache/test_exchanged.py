"""Models whose activations do not lie as rows of tokens are refused in words, before anything is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from zoo import LAYERS, WORDS, fresh, stack

import realloc
from realloc import Cache, methods
from realloc.cache.keys import Example
from realloc.cache.passage import Passage
from realloc.errors import StateError


def xlnet() -> nn.Module:
    """Its hidden states are ``[tokens, rows, width]``."""
    config = transformers.XLNetConfig(vocab_size=WORDS, d_model=32, n_layer=LAYERS, n_head=4, d_inner=48, dropout=0.0)
    return transformers.XLNetForSequenceClassification(config)


def some(rows: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(5, WORDS, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(("rows", "tokens"), [(4, 7), (2, 2), (5, 2), (2, 5), (3, 3), (1, 2), (2, 1)])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_tokens_before_rows_are_refused_with_the_remedy_which_works(rows: int, tokens: int, compute: Any) -> None:
    model, optimizer = fresh(xlnet)
    handle = realloc.attach(model, optimizer, methods.topk(1, cache=Cache(compute=compute)))
    few = 1 if tokens == 2 else min(2, rows)
    words = rf"XLNetModel give shape \({tokens}, {few}, 32\).*\[{few} rows, {tokens} tokens, width\].*cache=None"
    with pytest.raises(StateError, match=words):
        model(**some(rows, tokens))
    assert handle.cached_bytes == 0
    handle.detach()
    realloc.attach(model, optimizer, methods.topk(1, cache=None))
    model(**some(rows, tokens)).logits.sum().backward()


class Fewer(nn.Module):
    """Gives one row less than it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x[1:]


def test_a_row_that_is_missing_is_refused() -> None:
    model, optimizer = fresh(lambda: stack(noise=Fewer()))
    realloc.attach(model, optimizer, methods.topk(1))
    with pytest.raises(StateError, match=r"Sequential give shape \(1, 16\).*\[2 rows, \.\.\.\].*cache=None"):
        model(torch.randn(6, 6))


def test_unequal_shapes_are_not_close() -> None:
    """Also where one could be stretched to the other."""
    way = Passage(stack(), Cache())
    examples = [Example(b"", 0, 1)]
    assert way._close(torch.zeros(1, 3), torch.zeros(1, 3), [0], examples, 0.1)
    assert not way._close(torch.zeros(1, 3), torch.zeros(1, 1), [0], examples, 0.1)
    assert not way._close(torch.zeros(1, 3), torch.zeros(1, 4), [0], examples, 0.1)
