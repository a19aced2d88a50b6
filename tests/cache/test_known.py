"""What the probes computed is not computed again by the training that follows."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import LAYERS, ZOO, batch, bert, fresh, texts, train

import realloc
from realloc import Cache, methods
from realloc.cache.known import Known
from realloc.depths import pooled_depths
from realloc.errors import ReallocWarning

ROOM = 10**6


def probed(model: nn.Module, rows: list[int], limit: int = ROOM, dtype: torch.dtype = torch.float32) -> Known:
    known = Known(limit, dtype)
    pooled_depths(model, [batch(texts()[0], rows)], known=known)
    return known


def attached(make: Any, known: Known | None) -> tuple[nn.Module, Any, realloc.LayerHandle]:
    model, optimizer = fresh(make)
    cache = Cache(dtype="float32", known=known)
    return model, optimizer, realloc.attach(model, optimizer, methods.topk(2, cache=cache))


@pytest.mark.parametrize("name", ZOO)
def test_what_was_known_is_read_and_the_training_is_the_same(name: str) -> None:
    count = len(texts()[0])
    half = list(range(count // 2))
    known = probed(fresh(ZOO[name])[0], half)
    assert len(known) == len(half)
    losses = []
    for given in (known, None):
        model, optimizer, handle = attached(ZOO[name], given)
        losses.append(train(model, optimizer, 40))
        misses = round(40 * 8 * (1 - (handle.hits or 0.0)))
        assert misses == count - (0 if given is None else len(half))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert len(known) == 0  # handed over, not held twice


def test_rows_of_other_weights_are_noticed() -> None:
    model, _ = fresh(bert)
    known = probed(model, list(range(len(texts()[0]))))
    other, optimizer = fresh(bert)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    handle = realloc.attach(other, optimizer, methods.topk(2, cache=Cache(known=known)))
    with pytest.warns(ReallocWarning, match="RA102"):
        train(other, optimizer, 3)
    assert (handle.hits or 0) < 1


def test_what_was_known_before_a_weight_changed_is_let_go() -> None:
    model, optimizer = fresh(bert)
    known = probed(model, list(range(12)))
    handle = realloc.attach(model, optimizer, methods.topk(2, cache=Cache(dtype="float32", known=known)))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(1.01)
    with pytest.warns(ReallocWarning, match="RA102"):
        model(**batch(texts()[0], list(range(12, 20))))
    model(**batch(texts()[0], list(range(8))))
    assert handle.hits == 0.0 and len(known) == 0


def test_what_overflows_is_left_out_and_computed_each_time() -> None:
    """As a cache does it: a number too large for float16 is not infinite by itself."""
    example = {"input_ids": torch.tensor([[5, 6], [7, 8], [9, 5], [6, 7]])}
    depth = torch.ones(4, 2, 3)
    depth[1, 0, 2], depth[2, 1, 1], depth[3, 0, 0] = -7e4, float("inf"), float("nan")
    known = Known(ROOM)
    known.add(example, [depth, depth, depth * 0, depth])
    assert len(known.take(1)) == 3, "what is infinite by itself, or no number, stays"
    known.add(example, [depth, depth, torch.ones_like(depth), depth])
    assert len(known.take(2)) == 4, "it fits at another depth"
    wide = Known(ROOM, torch.bfloat16)
    wide.add(example, [depth, depth, depth])
    assert len(wide.take(1)) == 4


def test_large_activations_that_were_known_train_as_without_a_cache() -> None:
    losses = []
    for known in (Known(ROOM), None):
        model, optimizer = fresh(bert)
        with torch.no_grad():
            model.bert.encoder.layer[LAYERS - 3].output.LayerNorm.weight.mul_(1e5)
        words = batch(texts()[0], list(range(8)))
        if known is not None:
            pooled_depths(model, [words], known=known)
            assert len(known.take(LAYERS - 2)) == 0
            pooled_depths(model, [words], known=known)
        cache = None if known is None else Cache(known=known)
        handle = realloc.attach(model, optimizer, methods.topk(2, cache=cache))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            losses.append([float(model(**words).logits.square().mean().detach()) for _ in range(2)])
        assert sum("RA104" in str(one.message) for one in said) == (known is not None)
        assert not handle.hits
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_the_limit_is_never_passed(rows: int) -> None:
    lengths = [int(m.sum()) for m in batch(texts()[0], list(range(8)))["attention_mask"]]
    width = _width()
    room = (LAYERS - 1) * width * 4 * sum(lengths[:rows])
    known = probed(fresh(bert)[0], list(range(8)), limit=room)
    assert len(known) == rows


def test_only_the_chosen_depth_stays() -> None:
    known = probed(fresh(bert)[0], [0, 1, 2])
    known.only(1)
    assert len(known) == 3
    assert len(known.take(2)) == 0
    known = probed(fresh(bert)[0], [0, 1, 2])
    found = known.take(2)
    assert [example.length for example, _ in found] == [len(rows) for _, rows in found]
    known.only(0)
    assert len(known) == 0


def _width() -> int:
    model, _ = fresh(bert)
    found: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return int(found.shape[1])
