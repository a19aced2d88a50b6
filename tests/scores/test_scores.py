import pytest
import torch
from torch import Tensor

from realloc.errors import ConfigError, StateError
from realloc.scores.fisher import fisher, fisher_want
from realloc.scores.gradient import gradient
from realloc.scores.magnitude import magnitude
from realloc.scores.momentum import momentum
from realloc.scores.random import random
from realloc.scores.relative_importance import relative_importance
from realloc.scores.score import Score
from realloc.scores.seen import Seen
from realloc.scores.signed_magnitude import signed_magnitude
from realloc.scores.taylor import taylor
from realloc.scores.topology import topology, topology_ch3

ALL = (
    magnitude,
    signed_magnitude,
    gradient,
    momentum,
    taylor,
    fisher,
    fisher_want,
    random,
    relative_importance,
    topology,
    topology_ch3,
)


def look(
    values: Tensor | None = None, seed: int = 0, grid: tuple[int, int] = (4, 5), units: int = 6, elements: int = 1
):
    g = torch.Generator().manual_seed(seed)
    places = torch.randperm(grid[0] * grid[1], generator=g)[:units].sort().values
    drawn = [torch.randn(units, elements, generator=g, dtype=torch.float64) for _ in range(3)]
    return Seen(
        places=places,
        grid=grid,
        held=places,
        generator=torch.Generator().manual_seed(seed),
        values=drawn[0] if values is None else values,
        gradient=drawn[1],
        average=drawn[2],
        age=torch.arange(units),
    )


@pytest.mark.parametrize("elements", [1, 6])
def test_elementwise_scores_equal_plain_loops(elements):
    seen = look(units=7, elements=elements)
    w, g, m = (t.tolist() for t in (seen.values, seen.gradient, seen.average))
    plain = {
        magnitude: [sum(abs(x) for x in row) for row in w],
        gradient: [sum(abs(x) for x in row) for row in g],
        momentum: [sum(abs(x) for x in row) for row in m],
        taylor: [sum(abs(x * y) for x, y in zip(a, b, strict=True)) for a, b in zip(w, g, strict=True)],
        fisher: [sum(x * x * y * y / 2 for x, y in zip(a, b, strict=True)) for a, b in zip(w, g, strict=True)],
        fisher_want: [sum(y * y for y in row) for row in g],
    }
    for score, expected in plain.items():
        torch.testing.assert_close(score(seen), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("score", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("units", [0, 1, 9])
def test_every_score_is_pure_and_repeats(score, units):
    def once():
        seen = look(units=units)
        before = [t.clone() for t in (seen.places, seen.values, seen.gradient, seen.average)]
        result = score(seen)
        after = (seen.places, seen.values, seen.gradient, seen.average)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return result

    first, second = once(), once()
    assert first.shape == (units,) and torch.equal(first, second)
    assert first.dtype == torch.float64
    assert bool((first >= 0).all())


@pytest.mark.parametrize("score", [magnitude, gradient, momentum, taylor, fisher], ids=lambda s: s.name)
def test_single_precision_stays_single(score):
    seen = look()
    single = Seen(
        seen.places,
        seen.grid,
        seen.held,
        seen.generator,
        seen.values.float(),
        seen.gradient.float(),
        seen.average.float(),
    )
    assert score(single).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_signed_magnitude_ranks_within_a_sign_with_ties_by_place(dtype):
    w = (3 * torch.randn(500, 1, generator=torch.Generator().manual_seed(2))).round().to(dtype) / 3
    w[::7] = -0.0
    score = signed_magnitude(look(w, grid=(20, 25), units=500))
    for side in (1, -1):
        own = [i for i in range(500) if w[i, 0].sign() == side]
        ranked = sorted(own, key=lambda i: (abs(float(w[i, 0])), i))
        for rank, i in enumerate(ranked, 1):
            assert float(score[i]) == pytest.approx(rank / len(own))
    assert not score[(w == 0).flatten()].any()


def test_signed_magnitude_releases_the_same_share_of_each_sign():
    w = torch.tensor([0.9, -0.01, 0.02, -5.0, 0.5, 0.03, -0.2, -0.3, 0.0, 0.7]).double().unsqueeze(1)
    score = signed_magnitude(look(w, units=10))
    # nearest zero first, within the own sign; the exact zero before all
    assert score.tolist() == [1.0, 0.25, 0.2, 1.0, 0.6, 0.4, 0.5, 0.75, 0.0, 0.8]
    torch.manual_seed(0)
    w = torch.cat((torch.rand(60) + 3, -torch.rand(40))).double()[torch.randperm(100)].unsqueeze(1)
    lowest = signed_magnitude(look(w, grid=(10, 10), units=100)).argsort()[:30]
    released = w[lowest].flatten()
    assert int((released > 0).sum()) == 18 and int((released < 0).sum()) == 12
    assert released[released > 0].max() <= w[w > 0].sort().values[17]
    assert released[released < 0].min() >= w[w < 0].sort(descending=True).values[11]


def test_relative_importance_equals_the_dense_formula():
    seen = look(grid=(5, 7), units=17)
    dense = torch.zeros(35, dtype=torch.float64)
    dense[seen.places] = seen.values.flatten().abs()
    dense = dense.view(5, 7)
    expected = dense / dense.sum(0).clamp_min(1e-300) + dense / dense.sum(1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(relative_importance(seen), expected.flatten()[seen.places])


def test_relative_importance_of_zeros_is_zero():
    assert relative_importance(look(torch.zeros(6, 1))).tolist() == [0.0] * 6


def test_random_follows_the_generator_only():
    a, b = random(look(seed=3)), random(look(seed=3))
    other = random(look(seed=4))
    assert torch.equal(a, b) and not torch.equal(a, other)


def test_a_missing_measure_is_named():
    seen = look()
    bare = Seen(seen.places, seen.grid, seen.held, seen.generator)
    with pytest.raises(StateError, match="gradient was not measured"):
        gradient(bare)
    with pytest.raises(StateError, match="values was not measured"):
        magnitude(bare)


@pytest.mark.parametrize(
    "bad", [lambda s: s.values, lambda s: torch.arange(len(s)), lambda s: torch.zeros(len(s) + 1)], ids=str
)
def test_a_wrong_result_is_refused(bad):
    with pytest.raises(StateError, match="mine"):
        Score("mine", frozenset(), bad)(look())


def test_an_unknown_need_names_the_nearest():
    with pytest.raises(ConfigError, match=r"gradients.*nearest: 'gradient'"):
        Score("mine", frozenset({"gradients"}), lambda s: s.places.double())


def test_seen_checks_shapes():
    with pytest.raises(StateError, match=r"values has shape \(3, 1\) for 2 places"):
        Seen(torch.tensor([0, 1]), (2, 2), torch.tensor([0]), torch.Generator(), torch.zeros(3, 1))
