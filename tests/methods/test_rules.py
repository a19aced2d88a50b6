"""Every method against its paper's rule written out plainly over dense matrices. See the methods for the references."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from kinds import WEIGHTS
from realloc import methods
from realloc.decide import decide
from realloc.kernels.search import draw
from realloc.methods.method import Method
from realloc.observe.candidates import Candidates
from realloc.observe.gradients import DenseGradient
from realloc.observe.standing import Standing
from realloc.plan import Plan
from realloc.rng import stream
from realloc.sites.grid import Grid

SEED, STEP = 11, 40
SHAPES = {"one": (6, 8), "two": (4, 10), "three": (2, 4)}


@dataclasses.dataclass
class Layer:
    """One layer as the paper sees it: a weight, a mask, a gradient, and a mean gradient, all dense; units in rows."""

    name: str
    grid: Grid
    mask: np.ndarray  # [units]
    weight: np.ndarray  # [units, size], zero where not held
    gradient: np.ndarray
    average: np.ndarray

    @property
    def worth(self) -> np.ndarray:
        return np.abs(self.weight).sum(1)

    def standing(self) -> Standing:
        places = torch.from_numpy(np.flatnonzero(self.mask))
        dense = torch.zeros(self.grid.height * self.grid.width, dtype=torch.float64)
        dense[self.grid.elements(torch.arange(self.grid.units))] = torch.from_numpy(self.gradient)
        source = DenseGradient(self.grid, dense.view(self.grid.height, self.grid.width))
        values, average = torch.from_numpy(self.weight)[places], torch.from_numpy(self.average)
        shape = (self.grid.height, self.grid.width)
        return Standing(self.name, self.grid, shape, places, values, source, average)


def layers(seed: int, block: tuple[int, int], share: float = 0.4) -> list[Layer]:
    rng, made = np.random.default_rng(seed), []
    for scale, (name, (height, width)) in enumerate(SHAPES.items(), start=1):
        grid = Grid(height, width, *block)
        mask = np.zeros(grid.units, dtype=bool)
        mask[rng.permutation(grid.units)[: max(1, round(share * grid.units))]] = True
        weight = rng.normal(size=(grid.units, grid.size)) * mask[:, None] / scale
        gradient, average = rng.normal(size=(2, grid.units, grid.size))
        made.append(Layer(name, grid, mask, weight, gradient, average * scale))
    return made


def best(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` places of ``among`` with the highest scores; the lower place wins a tie."""
    order = sorted(np.flatnonzero(among), key=lambda place: (-scores[place], place))
    chosen = np.zeros_like(among)
    chosen[order[:count]] = True
    return chosen


def cosine(start: float, end: float, phase: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * phase)) / 2


def drop_count(share: float, held: int) -> int:
    return math.floor(share * held)


def generator(purpose: str, layer: Layer) -> torch.Generator:
    return stream(SEED, purpose, layer.name, STEP)


def rand(gen: torch.Generator, count: int) -> np.ndarray:
    return torch.rand(count, generator=gen, dtype=torch.float64).numpy()


def by_gradient(rows: list[Layer], share: float) -> list[np.ndarray]:
    """RigL, algorithm 1: keep the largest |w|, then the largest |g| of all that is not kept."""
    after = []
    for layer in rows:
        k = drop_count(share, layer.mask.sum())
        kept = best(layer.worth, layer.mask, layer.mask.sum() - k)
        after.append(kept | best(np.abs(layer.gradient).sum(1), ~kept, k))
    return after


def at_random(rows: list[Layer], share: float, worth) -> list[np.ndarray]:
    """SET, SMET, random: release the least worth, then as many random places among those not held before."""
    after = []
    for layer in rows:
        free = ~layer.mask
        k = min(drop_count(share, layer.mask.sum()), free.sum())
        drawn = drawn_places(layer, 1.0, k)
        k = min(k, drawn.sum())
        kept = best(worth(layer), layer.mask, layer.mask.sum() - k)
        scores = np.full(layer.grid.units, -1.0)
        scores[drawn] = rand(generator("acquire", layer), drawn.sum())
        after.append(kept | best(scores, drawn, k))
    return after


def drawn_places(layer: Layer, factor: float, wanted: int) -> np.ndarray:
    """The random candidates; that they are uniform and of the right number is shown in tests/observe."""
    drawn = np.zeros_like(layer.mask)
    if wanted:
        held = torch.from_numpy(np.flatnonzero(layer.mask))
        drawn[
            draw([Candidates(factor).lot(held, layer.grid.units, generator("release", layer), wanted)])[0].numpy()
        ] = True
    return drawn


def signed(layer: Layer) -> np.ndarray:
    """SET: rank of |w| within its own sign, as a share."""
    sign, scores = np.sign(layer.weight.sum(1)), np.zeros(layer.grid.units)
    for side in (1, -1):
        own = np.flatnonzero((sign == side) & layer.mask)
        for rank, place in enumerate(sorted(own, key=lambda p: (layer.worth[p], p)), start=1):
            scores[place] = rank / len(own)
    return scores


def blind(layer: Layer) -> np.ndarray:
    scores = np.zeros(layer.grid.units)
    scores[layer.mask] = rand(generator("keep", layer), layer.mask.sum())
    return scores


def guided(rows: list[Layer], share: float) -> list[np.ndarray]:
    """GSE: |g| among random candidates as many as held units; what was just released stays out."""
    after = []
    for layer in rows:
        k = min(drop_count(share, layer.mask.sum()), (~layer.mask).sum())
        drawn = drawn_places(layer, 1.0, k)
        kept = best(layer.worth, layer.mask, layer.mask.sum() - k)
        after.append(kept | best(np.abs(layer.gradient).sum(1), drawn, k))
    return after


def by_momentum(rows: list[Layer], share: float) -> list[np.ndarray]:
    """SNFS: what all layers release is shared by mean |momentum| of what each holds, and grows at the largest |m|."""
    drops = [drop_count(share, layer.mask.sum()) for layer in rows]
    kept = [best(layer.worth, layer.mask, layer.mask.sum() - k) for layer, k in zip(rows, drops, strict=True)]
    evidence = np.array([np.abs(layer.average[layer.mask]).mean() for layer in rows])
    room = np.array([(~k).sum() for k in kept])
    grows, open_ = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)
    while True:  # what is over a layer's room is shared again among the others
        left = sum(drops) - room[~open_].sum()
        grows = np.where(open_, left * evidence / evidence[open_].sum(), room)
        if not (open_ & (grows > room)).any():
            break
        open_ &= grows <= room
    counts = np.floor(grows + 1e-9).astype(int)
    for i in sorted(np.flatnonzero(open_), key=lambda i: (-(grows[i] - counts[i]), i)):
        counts[i] += counts.sum() < sum(drops)
    return [k | best(np.abs(layer.average).sum(1), ~k, n) for layer, k, n in zip(rows, kept, counts, strict=True)]


def pruned(rows: list[Layer], density: float) -> list[np.ndarray]:
    """GraNet's first half, GMP: one threshold on |w| over all layers; every layer keeps its best unit."""
    target = round(density * sum(layer.grid.units for layer in rows))
    kept = [best(layer.worth, layer.mask, 1) for layer in rows]
    others = [(-layer.worth[p], i, p) for i, layer in enumerate(rows) for p in np.flatnonzero(layer.mask & ~kept[i])]
    for _, i, place in sorted(others)[: max(0, target - len(rows))]:
        kept[i][place] = True
    return kept


def regenerated(rows: list[Layer], density: float, share: float) -> list[np.ndarray]:
    """GraNet's second half: RigL on what is left."""
    smaller = [dataclasses.replace(layer, mask=mask) for layer, mask in zip(rows, pruned(rows, density), strict=True)]
    return by_gradient(smaller, share)


def by_topology(rows: list[Layer], share: float, exponent: float) -> list[np.ndarray]:
    """CHTs: those that stay are drawn with chances |w|^T, those that come with chances of their CH2-L3n score."""
    after = []
    for layer in rows:
        held = np.flatnonzero(layer.mask)
        stay = len(held) - drop_count(share, len(held))
        noise = -np.log(-np.log(np.maximum(rand(generator("release", layer), len(held)), 2.0**-54)))
        keys = np.full(layer.grid.units, -np.inf)
        keys[held] = exponent * np.log(layer.worth[held]) + noise
        kept = best(keys, layer.mask, stay)
        score = ch2(kept.reshape(layer.grid.rows, layer.grid.columns)).ravel()
        free = np.flatnonzero(~kept)
        noise = -np.log(-np.log(np.maximum(rand(generator("acquire", layer), len(free)), 2.0**-54)))
        keys[free] = np.where(score[free] > 0, np.log(np.maximum(score[free], 1e-300)) + noise, -1e6 + noise)
        after.append(kept | best(keys, ~kept, len(held) - stay))
    return after


def ch2(mask: np.ndarray) -> np.ndarray:
    """CH2-L3n of every missing link, path by path (2501.19107, section 3.1), with the numerator i + 1."""
    rows, columns = mask.shape
    score = np.zeros(mask.shape)
    for u, v in zip(*np.nonzero(~mask), strict=True):
        across = [z for z in range(rows) if mask[z, v] and (mask[z] & mask[u]).any()]
        along = [z for z in range(columns) if mask[u, z] and (mask[:, z] & mask[:, v]).any()]
        for z in across:
            inside = (mask[z] & mask[u]).sum()
            score[u, v] += (inside + 1) / (mask[z].sum() - inside - 1 + 1)
        for z in along:
            inside = (mask[:, z] & mask[:, v]).sum()
            score[u, v] += (inside + 1) / (mask[:, z].sum() - inside - 1 + 1)
    return score


def cubic(start: float, end: float, phase: float) -> float:
    return end + (start - end) * (1 - phase) ** 3


RULES = {
    "chts": (lambda rows, p: by_topology(rows, 0.3, 1 + 2 * p), methods.chts(0.4)),
    "gmp": (lambda rows, p: pruned(rows, cubic(1.0, 0.1, p)), methods.gmp(0.1)),
    "granet": (
        lambda rows, p: regenerated(rows, cubic(0.4, 0.1, p), cosine(0.5, 0.005, p)), methods.granet(0.1, start=0.4),
    ),
    "gse": (lambda rows, p: guided(rows, cosine(0.3, 0.0, p)), methods.gse(0.4)),
    "itop": (lambda rows, p: by_gradient(rows, cosine(0.5, 0.005, p)), methods.itop(0.4)),
    "itop random": (
        lambda rows, p: at_random(rows, cosine(0.5, 0.005, p), lambda layer: layer.worth),
        methods.itop(0.4, grow="random"),
    ),
    "random_moves": (lambda rows, p: at_random(rows, cosine(0.3, 0.0, p), blind), methods.random_moves(0.4)),
    "rigl": (lambda rows, p: by_gradient(rows, cosine(0.3, 0.0, p)), methods.rigl(0.4)),
    "smet": (lambda rows, p: at_random(rows, cosine(0.2, 0.005, p), lambda layer: layer.worth), methods.smet(0.4)),
    "snfs": (lambda rows, p: by_momentum(rows, cosine(0.5, 0.0, p)), methods.snfs(0.4)),
    "sparse_evolution": (lambda rows, p: at_random(rows, 0.3, signed), methods.sparse_evolution(0.4)),
    "static": (lambda rows, p: [layer.mask for layer in rows], methods.static(0.4)),
}  # fmt: skip


def masks_after(plan: Plan, rows: list[Layer]) -> list[np.ndarray]:
    assert plan.skipped is None and [c.site for c in plan.changes] == [layer.name for layer in rows]
    after = []
    for change, layer in zip(plan.changes, rows, strict=True):
        mask = layer.mask.copy()
        assert mask[change.released.numpy()].all() and not mask[change.acquired.numpy()].any()
        mask[change.released.numpy()], mask[change.acquired.numpy()] = False, True
        assert change.before == layer.mask.sum() and change.after == mask.sum()
        after.append(mask)
    return after


def test_every_method_has_a_rule():
    assert {name.split()[0] for name in RULES} == set(WEIGHTS)


@pytest.mark.parametrize("block", [(1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("phase", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", RULES)
def test_a_decision_is_the_papers(name, phase, block):
    rule, method = RULES[name]
    for seed in range(6):
        rows = layers(seed, block)
        plan = decide([layer.standing() for layer in rows], method, step=STEP, phase=phase, seed=SEED)
        for mine, theirs, layer in zip(masks_after(plan, rows), rule(rows, phase), rows, strict=True):
            assert np.array_equal(mine, theirs), (name, layer.name, seed)


@pytest.mark.parametrize("name", [n for n in RULES if n not in ("gmp", "static")])
def test_ties_go_to_the_lower_place(name):
    rule, method = RULES[name]
    rows = layers(0, (1, 1), share=0.5)
    for layer in rows:
        layer.weight, layer.gradient = np.round(layer.weight), np.round(layer.gradient)
        layer.weight[layer.mask & (layer.worth == 0)] = 1.0
        layer.average = np.round(layer.average)
    plan = decide([layer.standing() for layer in rows], method, step=STEP, phase=0.1, seed=SEED)
    for mine, theirs in zip(masks_after(plan, rows), rule(rows, 0.1), strict=True):
        assert np.array_equal(mine, theirs)


def test_what_may_come_back_at_once():
    rows = layers(3, (1, 1))
    for layer in rows:  # the least worth has the largest gradient
        layer.gradient[layer.mask] = 100.0
        layer.average[layer.mask] = 100.0

    def change(method: Method) -> int:
        return decide([layer.standing() for layer in rows], method, step=STEP, phase=0.0, seed=SEED).units_moved

    assert change(methods.rigl(0.4)) == 0 == change(methods.itop(0.4))  # released and acquired again: nothing changes
    assert change(methods.gse(0.4)) > 0 and change(methods.smet(0.4)) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing(value):
    rows = layers(3, (1, 1))
    rows[1].gradient[np.flatnonzero(~rows[1].mask)[0]] = value
    plan = decide([layer.standing() for layer in rows], methods.rigl(0.4), step=STEP, phase=0.0, seed=SEED)
    assert plan.skipped is not None and "gradient scores of two" in plan.skipped and not plan.changes


def test_the_density_falls_no_further_than_what_took_part_allows():
    rows = layers(3, (1, 1))
    standings = [dataclasses.replace(layer.standing(), active=layer.name == "three") for layer in rows]
    plan = decide(standings, methods.granet(0.05, start=0.4), step=STEP, phase=1.0, seed=SEED)
    assert [c.after for c in plan.changes] == [rows[0].mask.sum(), rows[1].mask.sum(), 1]
