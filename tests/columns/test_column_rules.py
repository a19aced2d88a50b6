"""Each rule beside its paper's, over a whole run: which columns are held, what is computed, and AdamW by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tabular import INPUTS, SITE, Plain, best, made, rows, step_on

import realloc
from realloc import methods
from realloc.scores.score import Score

K, GAP, UNTIL, STEPS = 4, 4, 22, 28
DUE = [4, 8, 12, 16, 20]  # the last is before the end of the curves, and still ends them


def strength(plain: Plain) -> dict[int, float]:
    return {column: float(plain.weight[:, column].abs().sum()) for column in plain.held}


class EntryPrune:
    """The size of the summed gradient in the interval of entry, in standard deviations over the columns held then."""

    extra = 4  # all that is left: each column that leaves is back at the next move
    method = methods.entryprune(K, candidates=0.5)
    start = K + 4

    def __init__(self) -> None:
        self.scores: dict[int, float] = {}
        self.sums = torch.zeros(8, INPUTS, dtype=torch.float64)
        self.new: set[int] | None = None  # None: the first interval, in which every column is new

    def watch(self, plain: Plain, gradient: torch.Tensor) -> None:
        self.sums[:, plain.held] += gradient[:, plain.held]

    def decide(self, plain: Plain, step: int, gradient: torch.Tensor, after: list[int]) -> list[int]:
        sizes = self.sums.abs().sum(0)[plain.held]
        scores = (sizes - sizes.mean()) / sizes.std(correction=0)
        for column, score in zip(plain.held, scores.tolist(), strict=True):
            if self.new is None or column in self.new:
                self.scores[column] = max(score, self.scores.get(column, -math.inf))
        self.sums.zero_()
        stay = best({column: self.scores[column] for column in plain.held}, K)
        self.new = set(after) - set(stay)  # who comes is random: any that were not held
        assert not self.new & set(plain.held) and len(self.new) == (0 if step == DUE[-1] else self.extra)
        return sorted({*stay, *self.new})


class FewCandidates(EntryPrune):
    extra = 2
    method = methods.entryprune(K, candidates=0.3)
    start = K + 2


class InTurn(EntryPrune):
    """The same flow by another score of the columns held at the move."""

    def worth(self, plain: Plain, gradient: torch.Tensor) -> dict[int, float]:
        raise NotImplementedError

    def decide(self, plain: Plain, step: int, gradient: torch.Tensor, after: list[int]) -> list[int]:
        stay = best(self.worth(plain, gradient), K)
        new = set(after) - set(stay)
        assert not new & set(plain.held) and len(new) == (0 if step == DUE[-1] else self.extra)
        return sorted({*stay, *new})


class ByStrength(InTurn):
    method = methods.columns(K, score="magnitude", candidates=0.5)

    def worth(self, plain: Plain, gradient: torch.Tensor) -> dict[int, float]:
        return strength(plain)


class ByGradient(InTurn):
    method = methods.columns(K, score="gradient", candidates=0.5)

    def worth(self, plain: Plain, gradient: torch.Tensor) -> dict[int, float]:
        return {column: float(gradient[:, column].abs().sum()) for column in plain.held}


class FewestPlaces(InTurn):
    """A stranger's score."""

    method = methods.columns(K, candidates=0.5, score=Score("fewest", frozenset(), lambda seen: -seen.places.double()))

    def worth(self, plain: Plain, gradient: torch.Tensor) -> dict[int, float]:
        return {column: -float(column) for column in plain.held}


class Columns(EntryPrune):
    method = methods.columns(K, candidates=0.5)


class NeuroFS:
    """A straight line from half of the inputs to K; a share of the weakest leaves, the largest gradients come."""

    method = methods.neurofs(K, start=0.5, drop=0.7)
    start = 6

    def watch(self, plain: Plain, gradient: torch.Tensor) -> None:
        pass

    def decide(self, plain: Plain, step: int, gradient: torch.Tensor, after: list[int]) -> list[int]:
        phase = 1.0 if step == DUE[-1] else step / UNTIL
        count = round(6 + (K - 6) * phase)
        leave = math.floor(0.7 * (1 + math.cos(math.pi * phase)) / 2 * count)
        stay = best(strength(plain), count - leave)
        others = {c: float(gradient[:, c].abs().sum()) for c in range(INPUTS) if c not in stay}
        return sorted([*stay, *best(others, leave)])


class QuickSelection:
    method = methods.quickselection(K)
    start = INPUTS

    def watch(self, plain: Plain, gradient: torch.Tensor) -> None:
        pass

    def decide(self, plain: Plain, step: int, gradient: torch.Tensor, after: list[int]) -> list[int]:
        return best(strength(plain), K) if step == DUE[-1] else plain.held


class RandomColumns:
    method = methods.random_columns(K)
    start = K

    def watch(self, plain: Plain, gradient: torch.Tensor) -> None:
        pass

    def decide(self, plain: Plain, step: int, gradient: torch.Tensor, after: list[int]) -> list[int]:
        return plain.held


RULES = [
    EntryPrune, FewCandidates, Columns, ByStrength, ByGradient, FewestPlaces, NeuroFS, QuickSelection, RandomColumns,
]  # fmt: skip


@pytest.mark.parametrize("storage", ["packed", "masked"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_run_is_the_papers(rule, storage):
    paper = rule()
    method = paper.method.on("0", storage=storage)
    model, optimizer, handle = made(method, schedule=realloc.every(GAP, until=UNTIL, total=STEPS), seed=5)
    site = handle.sites[SITE]
    plain = Plain(site.places().tolist())
    assert len(plain.held) == paper.start and handle.budget == paper.start * 8
    moved = set()
    for step in range(1, STEPS + 1):
        step_on(model, optimizer, step)
        gradient = plain.step(step)
        paper.watch(plain, gradient)
        if step in DUE:
            after = site.places().tolist()
            moved |= set(after) - set(plain.held)
            plain.move(paper.decide(plain, step, gradient, after))
        assert site.places().tolist() == plain.held, step
        assert torch.allclose(model[0].weight, plain.weight, rtol=1e-9, atol=1e-12), step
        assert handle.held + handle.parked == handle.budget and handle.held == len(plain.held) * 8
        x = rows(1000 + step)[0]
        assert torch.allclose(model(x), plain.logits(x), rtol=1e-9, atol=1e-12), step
    assert len(plain.held) == K
    assert bool(moved) == issubclass(rule, EntryPrune | NeuroFS), "no column ever entered: the run shows nothing"


def test_a_new_column_has_no_moments_of_the_one_before():
    model, optimizer, handle = made(methods.entryprune(K, candidates=0.5))
    for step in range(1, 4):
        step_on(model, optimizer, step)
    (pool,) = [p for name, p in model.named_parameters() if name.startswith("realloc_pool")]
    before = handle.sites[SITE].places().tolist()
    step_on(model, optimizer, 4)
    state, after = optimizer.state[pool], handle.sites[SITE].places().tolist()
    new = [i for i, column in enumerate(after) if column not in before]
    assert len(new) == 4
    first, second, values = (t.detach().view(-1, 8)[new] for t in (state["exp_avg"], state["exp_avg_sq"], pool))
    assert not first.any() and not values.any() and second.unique().numel() == 1 and bool((second > 0).all())


def test_only_the_first_interval_counts():
    model, optimizer, handle = made(methods.entryprune(1, candidates=1.0), schedule=realloc.every(2, total=20))
    known = []
    for step in range(1, 9):
        step_on(model, optimizer, step)
        known.append(model.realloc_impressions0.clone())
    assert handle.held == handle.budget  # no other input is left to come, so nothing leaves before the end
    assert bool(known[1].isfinite().all()) and torch.equal(known[1], known[-1])
