"""Models that find positions for themselves, by column or by counting what is no padding, read what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from zoo import SIZES, ZOO, fresh

import realloc
from realloc import Cache, methods

PAD = 1  # of RoBERTa and MPNet, by nature


def mpnet() -> nn.Module:
    config = transformers.MPNetConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.MPNetForSequenceClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {"roberta": ZOO["roberta"], "mpnet": mpnet, "bert": ZOO["bert"]}


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module, realloc.LayerHandle]:
    """The base of a model that reads, in training; of its twin that computes; a learning rate of zero."""
    model, twin = fresh(make)[0], fresh(make)[0].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = realloc.attach(model, optimizer, methods.topk(1, cache=Cache(dtype="float32")))
    return model.base_model, twin.base_model, handle


def off(model: nn.Module, twin: nn.Module, **given: Any) -> float:
    """The largest difference where there are tokens."""
    mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
    difference = (model(**given)[0] - twin(**given)[0]) * mask[..., None]
    return float(difference.detach().abs().max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("first", ["found", "given"])
def test_positions_found_and_positions_given_are_two_examples(name: str, first: str) -> None:
    model, twin, _ = pair(MODELS[name])
    ids = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(0))
    calls: list[dict[str, Tensor]] = [{}, {"position_ids": torch.arange(6)[None]}]
    for call in calls if first == "found" else reversed(calls):
        assert off(model, twin, input_ids=ids, **call) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_what_the_mask_leaves_out_on_the_left_may_be_counted(name: str) -> None:
    model, twin, _ = pair(MODELS[name])
    mask = torch.tensor([[0, 0, 1, 1]] * 2)
    for left in ([7, 8], [PAD, PAD], [PAD, 7]):
        ids = torch.tensor([[*left, 5, 6], [*left, 5, 9]])
        assert off(model, twin, input_ids=ids, attention_mask=mask) < 1e-4


@pytest.mark.parametrize("name", [*MODELS, "gpt2"])
def test_padding_on_both_sides_and_of_any_width(name: str) -> None:
    """Given positions count from the first token: then one example is one, wherever it stands."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 60, (count,), generator=draw) for count in (3, 5, 7, 4)]
    given, found = pair((MODELS | ZOO)[name]), pair((MODELS | ZOO)[name])
    for width in (7, 8, 10):
        for left in (True, False):
            ids, mask = torch.full((4, width), PAD), torch.zeros(4, width, dtype=torch.long)
            for i, row in enumerate(rows):
                part = slice(width - len(row), width) if left else slice(0, len(row))
                ids[i, part], mask[i, part] = row, 1
            call = {"input_ids": ids, "attention_mask": mask}
            assert off(*found[:2], **call) < 1e-4
            assert off(*given[:2], **call, position_ids=(mask.cumsum(1) - 1).clamp(min=0) + 2) < 1e-4
    assert given[2].hits == pytest.approx(5 / 6)  # six calls, the first of which computes
    # the longest begins at column 0 in the first call, and from then on what is padded on the right
    assert found[2].hits == pytest.approx((1 + 4 + 4) / 24)
