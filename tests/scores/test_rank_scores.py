"""Scores of ranks against their formulas written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from realloc.errors import StateError
from realloc.scores.held_ranks import HeldRanks
from realloc.scores.rank_gain import FLAT, rank_gain, separated
from realloc.scores.sensitivity import sensitivity
from realloc.scores.singular import jump, recompose


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(
    name: str, rank: int, shape: tuple[int, int] = (9, 7), cap: int = 6, size: float = 1.0, seed: int = 0, rows: int = 8
) -> HeldRanks:
    fan_out, fan_in = shape
    pair = size * numbers(rows, fan_in, seed=seed), numbers(rows, fan_out, seed=seed + 1)
    a, b = numbers(rank, fan_in, seed=seed + 2), numbers(rank, fan_out, seed=seed + 3)
    return HeldRanks(name, cap, shape, torch.arange(rank), a, b, 0.5, pairs=(pair,))


def generators(sites: list[HeldRanks]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i, _ in enumerate(sites)]


@given(st.integers(0, 8), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 3.0), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_recomposed_it_is_the_same_product_in_singular_directions(rank, fan_in, fan_out, scale, seed):
    a, b = numbers(rank, fan_in, seed=seed), numbers(rank, fan_out, seed=seed + 1)
    values, new_a, new_b = recompose(a, b, scale)
    whole = scale * b.t() @ a
    assert torch.allclose(scale * new_b.t() @ new_a, whole, atol=1e-9)
    wanted = torch.linalg.svdvals(whole)
    assert values.shape == (rank,) and torch.allclose(values[: len(wanted)], wanted[:rank], atol=1e-9)
    assert bool((values.diff() <= 1e-12).all())
    for k in range(rank + 1):  # the first k ranks are the best of k ranks
        rest = whole - scale * new_b[:k].t() @ new_a[:k]
        assert float(rest.norm()) == pytest.approx(float(wanted[k:].norm()), abs=1e-8)
    assert jump(a, b, scale) == pytest.approx(float(whole.norm()), rel=1e-9, abs=1e-12)


def test_the_gain_is_the_spectrum_beyond_what_is_held():
    sites = [layer("one", 2), layer("two", 0, size=40.0, seed=10), layer("three", 3, size=900.0, seed=20)]
    wanted = rank_gain(1.0).measure(sites, generators(sites))
    assert wanted.note == ""
    for site, gains in zip(sites, wanted.gains, strict=True):
        (x, gy), _ = site.pairs[0], None
        gradient = gy.t() @ x
        left = torch.eye(9, dtype=torch.float64) - site.b.t() @ torch.linalg.pinv(site.b.t())
        right = torch.eye(7, dtype=torch.float64) - torch.linalg.pinv(site.a) @ site.a
        values = torch.linalg.svdvals(left @ gradient @ right)[: site.room]
        expected = 0.25 * values.square() / 16
        assert gains.shape == (site.room,) and torch.allclose(gains[: len(expected)], expected, rtol=1e-3, atol=1e-9)
        assert bool((gains.diff() <= 1e-9).all())


def test_ranks_that_cover_a_layer_leave_nothing_to_gain():
    sites = [layer("full", 7, cap=9), layer("other", 1, size=50.0, seed=10), layer("third", 1, size=2000.0, seed=20)]
    gains = rank_gain(1.0).measure(sites, generators(sites)).gains
    assert float(gains[0].max()) < 1e-12 < float(gains[1].max()) < float(gains[2].max())


def test_uniform_wins_where_layers_look_alike():
    sites = [layer(f"{i}", rank, size=1.0 + 0.01 * i, seed=10 * i) for i, rank in enumerate((3, 0, 2))]
    wanted = rank_gain(2.0).measure(sites, generators(sites))
    assert wanted.note == FLAT
    order = sorted((-float(g), i) for i, gains in enumerate(wanted.gains) for g in gains)
    ranks = [3, 0, 2]
    for _, site in order[:4]:  # each next rank goes to a layer with the fewest
        assert ranks[site] == min(ranks)
        ranks[site] += 1


@pytest.mark.parametrize(
    ("halves", "margin", "told"),
    [
        ([[1.0, 1.0], [5.0, 5.0], [25.0, 25.0], [125.0, 125.0]], 2.0, True),
        ([[1.0, 1.0], [5.0, 5.0], [25.0, 25.0], [125.0, 125.0]], 1000.0, False),
        ([[1.0, 125.0], [5.0, 25.0], [25.0, 5.0], [125.0, 1.0]], 2.0, False),  # the halves disagree
        ([[1.0, 1.0], [1.1, 1.1], [1.2, 1.2], [1.3, 1.3]], 2.0, False),
        ([[1.0, 1.0], [5.0, 1.1], [25.0, 1.2], [125.0, 1.3]], 2.0, False),  # one half alone does
        ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], 1.0, False),
        ([[3.0, 3.0]], 1.0, False),
    ],
)
def test_when_layers_count_as_told_apart(halves, margin, told):
    assert separated(torch.tensor(halves), margin) is told


def test_sensitivity_is_the_mean_of_both_rows():
    site = layer("one", 3)
    means = tuple(numbers(3, width, seed=i).abs() for i, width in enumerate((7, 9, 7, 9)))
    known = HeldRanks(site.name, site.cap, site.shape, site.places, site.a, site.b, site.scale, means)
    found = sensitivity.measure(known, torch.Generator())
    for k in range(3):
        by_hand = sum(float(i * u) for i, u in zip(means[0][k], means[2][k], strict=True)) / 7
        by_hand += sum(float(i * u) for i, u in zip(means[1][k], means[3][k], strict=True)) / 9
        assert float(found[k]) == pytest.approx(by_hand)
    with pytest.raises(StateError, match="no sensitivity was measured"):
        sensitivity.measure(site, torch.Generator())


def test_halves_of_a_gradient_add_up():
    site = layer("one", 1, rows=7)
    assert torch.allclose(site.gradient(0) + site.gradient(1), site.gradient(), atol=1e-12)
