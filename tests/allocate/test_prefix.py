"""Probes of each depth: leave-one-out by its definition, and the rule that turns errors into frozen layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from realloc.allocate.prefix import depths_of
from realloc.depths import probe_depths
from realloc.errors import ConfigError
from realloc.observe.probes import STRENGTHS, leave_one_out, one_hot


def slowly(x: torch.Tensor, y: torch.Tensor, strength: float) -> torch.Tensor:
    """One fit for each example that is left out, with the same standardised columns and mean of the targets."""
    n, d = x.shape
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-9) / d**0.5
    y = y - y.mean(0)
    x = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], 1)
    ridge = torch.diag(torch.tensor([strength * n / d] * d + [0.0], dtype=x.dtype))
    errors = []
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        w = torch.linalg.solve(x[rest].T @ x[rest] + ridge, x[rest].T @ y[rest])
        errors.append((y[i] - x[i] @ w).square().sum())
    return torch.stack(errors)


@given(st.integers(4, 20), st.integers(1, 6), st.integers(1, 3), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_leave_one_out_is_that_of_leaving_one_out(n: int, d: int, c: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, d, generator=draw).double(), torch.randn(n, c, generator=draw).double()
    candidates = [slowly(x, y, strength) for strength in STRENGTHS]
    assert torch.allclose(leave_one_out(x, y), min(candidates, key=lambda e: float(e.mean())), rtol=1e-6, atol=1e-9)


def test_what_cannot_be_probed_is_refused() -> None:
    x = torch.randn(5, 2)
    for features, targets in ((x, x[:4]), (x[:2], x[:2]), (x[0], x[:1])):
        with pytest.raises(ConfigError, match="takes"):
            leave_one_out(features, targets)
    with pytest.raises(ConfigError, match="NaN"):
        leave_one_out(x / 0, x)
    with pytest.raises(ConfigError, match="two depths"):
        depths_of([x[:, 0]])


def made(*means: float, n: int = 400, noise: float = 0.5) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(n, generator=draw)
    return [mean + shared + noise * torch.randn(n, generator=draw) for mean in means]


@pytest.mark.parametrize(
    ("means", "frozen", "kept"),
    [
        ((1.0, 0.9, 0.8, 0.7), 2, 3),  # the top is best, and one layer trains
        ((1.0, 0.9, 0.5, 0.7, 0.9), 1, 3),  # the top knows less: the layers on both sides of the best depth train
        ((1.0, 0.6, 0.8, 0.9), 1, 2),  # the best depth is the first
        ((1.0, 0.9, 0.5, 0.7), 1, 3),  # one above the best is the top
        ((1.0, 0.9, 0.5, 0.501), 2, 3),  # best and top are not told apart
        ((1.0, 1.2, 1.3, 1.4), 0, 3),  # the layers do harm
        ((1.0, 1.0, 0.99, 1.0), 0, 3),  # nothing is told apart from the embeddings
        ((1.0, 0.5), 0, 1),  # a single layer is never frozen
    ],
)
def test_the_rule(means: tuple[float, ...], frozen: int, kept: int) -> None:
    found = depths_of(made(*means))
    assert (found.frozen, found.kept) == (frozen, kept)
    assert ("drop" in str(found)) == (kept < found.layers)
    assert f"freeze {'the ' + str(frozen) if frozen else 'none'}" in str(found)


def test_the_depths_of_a_model_are_those_of_its_hidden_states() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.BertForSequenceClassification(config).train()
    ids = torch.randint(5, 40, (300, 8))
    mask = torch.ones_like(ids)
    before = [p.clone() for p in model.parameters()]
    labels = (ids[:, 0] > 20).long()
    found = probe_depths(model, [{"input_ids": ids, "attention_mask": mask}], labels)
    assert model.training and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert len(found.errors) == 4 and found.examples == 300
    model.eval()
    with torch.no_grad():
        hidden = model.bert(ids, mask, output_hidden_states=True).hidden_states
    by_hand = [float(leave_one_out(h.mean(1), one_hot(labels)).mean()) for h in hidden]
    assert found.errors == pytest.approx(by_hand, rel=1e-4)
    with pytest.raises(ConfigError, match="299 targets"):
        probe_depths(model, [{"input_ids": ids}], labels[1:])
    with pytest.raises(ConfigError, match="compute"):
        probe_depths(model, [], labels, compute="int8")
    with pytest.raises(ConfigError, match="transformers"):
        probe_depths(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)), [], labels)
