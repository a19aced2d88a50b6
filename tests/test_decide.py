"""One decision: worked by hand, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import realloc
from kinds import WEIGHTS
from realloc import methods
from realloc.decide import decide, least_of, target_of
from realloc.errors import StateError
from realloc.methods.method import Method
from realloc.observe.gradients import DenseGradient
from realloc.observe.standing import Standing
from realloc.schedule import constant
from realloc.scores.score import Score
from realloc.sites.grid import Grid

# A RigL update by hand. Half of six weights may be released; a held weight stands where the mask says 1.
#
#   weight             mask        gradient on this batch
#   .9   .   -.1  .    1 0 1 0      9   1  -7   2
#   .   -.5   .   .2   0 1 0 1      .1  5   8   3
#   .3   .  -.05  .    1 0 1 0     -4  -6   1  .5
#
# Released: the three smallest |w|: -.05 at (2,2), -.1 at (0,2), .2 at (1,3). Not kept, by |g|: 8 at (1,2), 7 at (0,2),
# 6 at (2,1). So (0,2) comes back, and stays as it was; (1,3) and (2,2) go; (1,2) and (2,1) come, at zero.
WEIGHT = torch.tensor([[0.9, 0, -0.1, 0], [0, -0.5, 0, 0.2], [0.3, 0, -0.05, 0]], dtype=torch.float64)
GRADIENT = torch.tensor([[9, 1, -7, 2], [0.1, 5, 8, 3], [-4, -6, 1, 0.5]], dtype=torch.float64)
AFTER = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
RIGL = dataclasses.replace(methods.rigl(0.5), drop=constant(0.5))


def by_hand(**parts: object) -> Standing:
    places = (WEIGHT != 0).flatten().nonzero().flatten()
    values = WEIGHT.flatten()[places].unsqueeze(1)
    standing = Standing("fc", Grid(3, 4), (3, 4), places, values, DenseGradient(Grid(3, 4), GRADIENT))
    return dataclasses.replace(standing, **parts)


def test_a_rigl_update_worked_by_hand():
    plan = decide([by_hand()], RIGL, step=1, phase=0.0, seed=0)
    (change,) = plan.changes
    assert change.released.tolist() == [1 * 4 + 3, 2 * 4 + 2] and change.acquired.tolist() == [1 * 4 + 2, 2 * 4 + 1]
    assert (change.before, change.after) == (6, 6) and plan.units_moved == 2
    assert change.keep_threshold == pytest.approx(0.2)  # the best of what was released
    assert change.want_threshold == pytest.approx(6.0) and change.predicted_gain == pytest.approx(8.0 + 6.0)


def test_the_same_update_through_a_training_step():
    """x is one row at a time, so that the gradient of the loss is the table above; SGD with momentum by hand."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    model[0].weight.data.copy_(WEIGHT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    start = dataclasses.replace(RIGL, place=methods.rigl(0.5).keep)  # hold the largest at the start: the six above
    handle = realloc.attach(model, optimizer, start.on("*"), schedule=realloc.every(1, total=10))
    assert torch.equal(handle.mask("0"), WEIGHT != 0)
    optimizer.zero_grad()
    (model(torch.eye(4, dtype=torch.float64)) * GRADIENT.t()).sum().backward()
    optimizer.step()
    assert torch.equal(handle.mask("0"), AFTER)
    stepped = WEIGHT - 0.001 * GRADIENT
    expected = torch.where(AFTER & (WEIGHT != 0), stepped, 0.0)
    torch.testing.assert_close(realloc.export.dense(model)[0].weight.detach(), expected)
    (site,) = handle.sites.values()
    buffer = torch.zeros(12, dtype=torch.float64)
    buffer[site.places()] = optimizer.state[site.pool.parameter]["momentum_buffer"][:, 0]
    torch.testing.assert_close(buffer.view(3, 4), torch.where(AFTER & (WEIGHT != 0), GRADIENT, 0.0))


def test_a_decision_touches_nothing_and_repeats():
    standing = by_hand()
    kept = standing.values.clone(), standing.places.clone()
    one, two = (decide([standing], RIGL, step=7, phase=0.2, seed=3) for _ in range(2))
    assert torch.equal(one.changes[0].acquired, two.changes[0].acquired)
    assert torch.equal(standing.values, kept[0]) and torch.equal(standing.places, kept[1])


def test_an_inactive_site_keeps_all_it_has():
    idle = by_hand(name="idle", active=False)
    plan = decide([by_hand(), idle], RIGL, step=1, phase=0.0, seed=0)
    assert [c.moves_anything for c in plan.changes] == [True, False]


def test_a_full_site_and_an_empty_one():
    full = Standing(
        "full", Grid(2, 2), (2, 2), torch.arange(4), torch.ones(4, 1), DenseGradient(Grid(2, 2), torch.ones(2, 2))
    )
    for name in WEIGHTS:
        method = getattr(methods, name)(0.5)
        plan = decide([dataclasses.replace(full, average=torch.ones(4, 1))], method, step=1, phase=0.0, seed=0)
        assert plan.skipped is None and plan.changes[0].after == (
            4 if name not in ("granet", "gmp") else plan.changes[0].after
        )
    empty = Standing("none", Grid(2, 2), (2, 2), torch.empty(0, dtype=torch.int64), torch.empty(0, 1))
    plan = decide([empty], dataclasses.replace(RIGL, drop=constant(0.9)), step=1, phase=0.0, seed=0)
    assert not plan.moves_anything


def test_the_target_follows_the_curve_and_never_rises():
    method = methods.granet(0.1, start=0.5)
    assert target_of([by_hand()], method, 1.0) == 1 and target_of([by_hand()], method, 0.0) == 6
    assert target_of([by_hand()], methods.rigl(0.1), 1.0) == 6
    assert least_of([by_hand(), by_hand(active=False)]) == 7
    plan = decide([by_hand()], method, step=1, phase=0.0, seed=0, target=4)
    assert plan.changes[0].after == 4


def test_seed_moments_carry_the_gradient_of_what_comes():
    plan = decide([by_hand()], dataclasses.replace(RIGL, moments="seed"), step=1, phase=0.0, seed=0)
    assert plan.changes[0].gradient.flatten().tolist() == [8.0, -6.0]


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"acquire": lambda scores, k, generator: torch.arange(k + 1)}, "acquire of rigl selected 4 units where 3"),
        ({"acquire": lambda scores, k, generator: torch.zeros(k, dtype=torch.int64)}, "different indices"),
        ({"acquire": lambda scores, k, generator: torch.arange(k) + len(scores)}, "acquire of rigl"),
        ({"acquire": lambda scores, k, generator: torch.arange(k).flip(0)}, "ascending"),
        ({"survive": lambda phase: lambda scores, k, generator: torch.arange(k - 1)}, "survive of rigl selected 2"),
        ({"share": lambda rooms, budget: [budget - 1]}, "share of rigl gave"),
        ({"share": lambda rooms, budget: [99]}, "share of rigl gave"),
        ({"share": lambda rooms, budget: [budget - 1, 1]}, "share of rigl gave"),
        ({"share": lambda rooms, budget: [float(budget)]}, "which are no integers"),
        ({"acquire": lambda scores, k, generator: list(range(k))}, "acquire of rigl gave list"),
        ({"acquire": lambda scores, k, generator: None}, "acquire of rigl gave NoneType"),
        ({"acquire": lambda scores, k, generator: torch.arange(k)[:, None]}, "acquire of rigl gave 2-d"),
        ({"acquire": lambda scores, k, generator: torch.arange(k).float()}, r"gave 1-d torch\.float32"),
    ],
)
def test_a_part_that_loses_or_doubles_a_unit_is_refused(parts, word):
    method: Method = dataclasses.replace(RIGL, **parts)
    with pytest.raises(StateError, match=word):
        decide([by_hand()], method, step=1, phase=0.0, seed=0)


def test_a_score_finer_than_the_weights_keeps_its_order():
    """Scores may be float64 over float32 weights: differences below float32 decide all the same."""
    fine = Score("fine", frozenset(), lambda seen: 1.0 + seen.places.double() * 1e-12)
    standing = by_hand(values=by_hand().values.float())
    plan = decide([standing], dataclasses.replace(RIGL, want=fine), step=1, phase=0.0, seed=0)
    free = [place for place in range(12) if place not in (0, 5, 8)]  # all but the three that are kept
    assert set(plan.changes[0].acquired.tolist()) == {p for p in free[-3:] if p not in standing.places.tolist()}
