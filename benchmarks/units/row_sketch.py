"""Which ids a bounded sketch lets own rows, beside the best choice: whole scores against what ids gained themselves.

    python benchmarks/units/row_sketch.py

Ids are drawn by Zipf's law; half way all of them are exchanged. "covered": the look-ups (faded as scores are) of those
who own rows, over those of the ids that come most often, before the exchange and at the end.
"""

from __future__ import annotations

import itertools
import statistics

import torch
from bench import head, title
from torch import Tensor

from realloc.kernels.sketch import WAYS, Entries, Sketch, insert
from realloc.nn.budget import Costs, split_of
from realloc.select.exchange import exchange

STEPS, BATCH, EVERY, DECAY, MARGIN = 200, 1024, 20, 0.9, 0.1


def empty(slots: int, shared: int) -> Sketch:
    integers = [torch.zeros(slots, dtype=torch.int32), torch.full((slots,), -1, dtype=torch.int32)]
    return Sketch(
        torch.full((slots,), -1), *integers, torch.zeros(slots), torch.zeros(slots), torch.zeros(slots, 0),
        torch.zeros(shared), torch.zeros(shared, 0),
    )  # fmt: skip


def decide(sketch: Sketch, rows: int, whole: bool) -> int:
    """One decision; returns how many ids got a row."""
    slots = (sketch.keys >= 0).nonzero().flatten()
    worth = (sketch.scores if whole else sketch.scores - sketch.inherited)[slots].double()
    holds = sketch.owned[slots] >= 0
    out, come = exchange(worth, holds, rows - int(holds.sum()), MARGIN)
    sketch.owned[slots[out]] = -1
    sketch.owned[slots[come]] = 1
    return len(come)


def story(ids: int, part: float, candidates: float, zipf: float, whole: bool) -> tuple[float, float, int]:
    """What is covered before the exchange and at the end, and how many promotions it took."""
    split = split_of(int(ids * part) * 16 * 4 * 3, Costs(16, 4, 2, 0), 0.5, candidates)
    sketch = empty(split.buckets * WAYS, split.shared)
    draw = torch.Generator().manual_seed(0)
    chance = torch.arange(1, ids + 1, dtype=torch.float64) ** -zipf
    true, covered, promoted = torch.zeros(ids), [], 0
    named = torch.randperm(ids, generator=draw)
    for step in range(1, STEPS + 1):
        if step == STEPS // 2:
            named = torch.randperm(ids, generator=draw)
        found, counts = named[torch.multinomial(chance, BATCH, True, generator=draw)].unique(return_counts=True)
        true[found] += counts
        order = torch.randperm(len(found), generator=draw)
        none: Tensor = torch.zeros(len(found), 0)
        insert(sketch, Entries(found[order], torch.zeros_like(found).int(), counts[order].float(), none), 1)
        if step % EVERY == 0:
            promoted += decide(sketch, split.own, whole)
            best = true.sort(descending=True).values[: split.own].sum()
            covered.append(float(true[sketch.keys[sketch.owned >= 0]].sum() / best))
            for faded in (sketch.scores, sketch.inherited, true):
                faded.mul_(DECAY)
    before = STEPS // EVERY // 2
    return statistics.mean(covered[before - 3 : before - 1]), statistics.mean(covered[-2:]), promoted


def main() -> None:
    print(title())
    print(head(["ids", "rows", "candidates", "Zipf", "covered, whole scores", "own gains", "promotions", "own gains"]))
    for ids, part, candidates, zipf in itertools.product((2_625, 100_000), (0.02, 0.1, 0.3), (1, 2, 4), (0.8, 1.1)):
        one, two = (story(ids, part, candidates, zipf, whole) for whole in (True, False))
        told = [f"{ids:,}", f"{part:.0%}", candidates, zipf, *(f"{a:.2f}, {b:.2f}" for a, b, _ in (one, two))]
        print("|", " | ".join(map(str, [*told, f"{one[2]:,}", f"{two[2]:,}"])), "|", flush=True)


if __name__ == "__main__":
    main()
