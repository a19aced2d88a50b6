"""Numbers that a cache's dtype has no room for, and batches and limits at the edge."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import LAYERS, bert, fresh, stack

import realloc
from realloc import Cache, methods
from realloc.cache.keys import examples_of
from realloc.cache.rows import Rows
from realloc.errors import ConfigError, ReallocWarning


def losses_of(cache: Cache | None, x: torch.Tensor) -> tuple[list[float], realloc.LayerHandle, nn.Module]:
    model, optimizer = fresh(stack)
    handle = realloc.attach(model, optimizer, methods.topk(1, cache=cache))
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, handle, model


def test_examples_that_overflow_are_computed_each_time_and_it_is_said() -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    x[:2] *= 1e6
    with pytest.warns(ReallocWarning, match=r"RA104.*float16.*bfloat16") as said:
        losses, handle, model = losses_of(Cache(), x)
    assert len(said) == 1
    plain, _, other = losses_of(None, x)
    assert losses == pytest.approx(plain, rel=1e-4)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    assert handle.hits == pytest.approx(5 / 12)  # the two that fit


def test_bfloat16_has_room_for_them() -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) * 1e6
    losses, handle, _ = losses_of(Cache(dtype="bfloat16"), x)
    assert losses == pytest.approx(losses_of(None, x)[0], rel=3e-2)
    assert handle.hits == pytest.approx(5 / 6)


def test_what_is_infinite_by_itself_is_no_overflow() -> None:
    rows = Rows(2, 1000)
    first, second, third = (examples_of(torch.tensor([[n]]))[0] for n in (1, 2, 3))
    large, endless = torch.tensor([[1.0, 7e4]]), torch.tensor([[1.0, float("inf")]])
    assert not rows.write(first, large) and torch.equal(rows.rounded(large), large)
    assert rows.write(second, endless) and rows.write(third, torch.tensor([[1.0, 65504.0]]))
    assert (len(rows), rows.refused, rows.overflowed) == (2, 1, 1)


def test_an_empty_batch_passes_through() -> None:
    model, optimizer = fresh(stack)
    handle = realloc.attach(model, optimizer, methods.topk(1))
    assert model(torch.randn(0, 6)).shape == (0, 3)
    model(torch.randn(4, 6))
    assert model(torch.randn(0, 6)).shape == (0, 3)
    assert handle.hits == 0.0


@pytest.mark.parametrize("make", [stack, bert])
def test_a_limit_below_one_token_is_refused_at_attach(make: object) -> None:
    model, optimizer = fresh(make)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a cache of 10 bytes holds no token"):
        realloc.attach(model, optimizer, methods.topk(1, cache=Cache(limit=10)))
    assert all(p.requires_grad for p in model.parameters()) and "realloc_layers" not in model.state_dict()
    every = methods.topk(3 if make is stack else LAYERS, cache=Cache(limit=10))
    realloc.attach(model, optimizer, every)  # nothing is frozen, nothing cached
