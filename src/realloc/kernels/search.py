"""Sorted sets of places: where one lies among another, what a move makes of it, a random one; and the best of scores.

One walk each, where torch would sort, search for each place and index by masks. On another device torch does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from torch import Generator, Tensor

from realloc.errors import StateError
from realloc.kernels import reference
from realloc.kernels import task as w
from realloc.kernels.team import fits, run, run_each

FEW: Final = 16  # held places for each query above which a binary search is quicker
SCATTERED: Final = 256  # numbers for each one drawn above which a bit for each of them is too much
MOST: Final = 10**9  # what numpy's hypergeometric draw takes
CHUNK: Final = 1 << 20  # as in kernels/sets.py, which only the compiler imports
BINS: Final = 1 << 16


def locate(held: Tensor, queries: Tensor) -> Tensor:
    """int64 ``[q]``: how many of ``held`` int64 ``[h]`` lie below each of ``queries`` int64 ``[q]``; both ascending.

    The same as ``torch.searchsorted(held, queries)``.

    >>> locate(torch.tensor([2, 5, 9]), torch.tensor([1, 5, 10]))
    tensor([0, 1, 3])
    """
    held, queries = held.contiguous(), queries.contiguous()
    if held.device.type != "cpu" or queries.numel() * FEW < held.numel() or not queries.numel():
        return torch.searchsorted(held, queries)
    found = torch.empty_like(queries)
    words: w.Words = {
        w.POINTER: held, w.LINES: held.numel(), w.OTHER: queries, w.SAMPLES: queries.numel(), w.OUT: found,
    }  # fmt: skip
    run("locate", torch.float64, words, 0)  # on this thread: what a walk costs is memory
    return found


def merge(held: Tensor, gone: Tensor, come: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """``held`` less ``gone`` plus ``come``, and where each of the result was in ``held`` (-1: it came).

    Args:
        held: int64 ``[h]``, ascending.
        gone: int64 ``[g]``, ascending, a part of ``held``.
        come: int64 ``[c]``, ascending, none of which is in ``held``.
        first: number of the first of ``held``.

    Returns:
        Two int64 ``[h - g + c]``: the places, ascending, and their source.

    Raises:
        StateError: ``gone`` is no part of ``held``, one of ``come`` is there already, or one is not ascending.

    >>> merge(torch.tensor([1, 4, 9]), torch.tensor([4]), torch.tensor([5]))
    (tensor([1, 5, 9]), tensor([ 0, -1,  2]))
    """
    if held.device.type != "cpu":
        return reference.merge(held, gone, come, first)
    held, gone, come = held.contiguous(), gone.contiguous(), come.contiguous()
    out = torch.empty(max(0, held.numel() - gone.numel() + come.numel()), dtype=torch.int64)
    source = torch.empty_like(out)
    words: w.Words = {
        w.POINTER: held, w.LINES: held.numel(), w.OTHER: gone, w.SAMPLES: gone.numel(), w.X: come,
        w.FEATURES: come.numel(), w.OUT: out, w.KEEP: out.numel(), w.GRADIENT: source, w.BIAS: first,
    }  # fmt: skip
    if not fits("merge", torch.float64, words, held.numel()):
        raise StateError("places do not fit: one is released that is not held, acquired twice, or out of order")
    return out, source


@final
@dataclass(frozen=True, eq=False)
class Lot:
    """What is drawn: ``count`` distinct integers below ``high``, none of ``taken`` (int64, ascending, on the CPU)."""

    high: int
    count: int
    generator: Generator
    taken: Tensor

    @property
    def free(self) -> int:
        """How many there are to draw from."""
        return self.high - self.taken.numel()


def draw(lots: Sequence[Lot]) -> list[Tensor]:
    """int64 ``[count]`` for each lot, ascending; every set of those not taken is equally likely.

    Costs O(count + taken), however great ``high`` is. One number of its generator seeds the kernel's own (splitmix64).

    Raises:
        StateError: a count that cannot be met; or taken numbers that repeat, descend or lie outside (where each has
            a bit, and that is where it would do harm).

    >>> draw([Lot(4, 3, torch.Generator(), torch.tensor([2]))])
    [tensor([0, 1, 3])]
    """
    tasks: list[w.Words] = []
    found = []
    for lot in lots:
        if not 0 <= lot.count <= lot.free:
            raise StateError(f"{lot.count} numbers cannot be drawn from {lot.free}")
        few = min(lot.count, lot.free - lot.count)
        if lot.high > min(SCATTERED * (few + 1) + lot.taken.numel(), MOST) and few == lot.count:
            found.append(_scattered(lot))
            continue
        out = torch.empty(lot.count, dtype=torch.int64)
        tasks.append(_task(lot, few, out))
        found.append(out)
    if tasks:
        run_each("draw", torch.float64, tasks, sum(out.numel() for out in found))
    return found


def _task(lot: Lot, few: int, out: Tensor) -> w.Words:
    """Of those to take and those to leave, the ``few`` are drawn."""
    seed, taken = int(torch.randint(2**63 - 1, (), generator=lot.generator)), lot.taken.contiguous()
    below = _split(lot.high, few, taken, seed)
    bits = torch.zeros(2, lot.high // 64 + 1, dtype=torch.int64)
    return {
        w.FEATURES: lot.high, w.LINES: below.numel() - 1, w.POINTER: below, w.OTHER: taken, w.ORDER: taken.numel(),
        w.PANEL: bits, w.SAMPLES: bits.shape[1], w.OUT: out, w.KEEP: seed, w.OTHERS: int(few < lot.count),
    }  # fmt: skip


def _split(high: int, count: int, taken: Tensor, seed: int) -> Tensor:
    """int64 ``[chunks + 1]``: how many of the ``count`` fall below each chunk of a uniform draw."""
    if high <= CHUNK:
        return torch.tensor([0, count])
    edges = torch.arange(0, high + CHUNK, CHUNK).clamp(max=high)
    free = (edges - torch.searchsorted(taken, edges)).diff()
    shares = np.random.default_rng(seed).multivariate_hypergeometric(free.numpy(), count, method="marginals")
    return torch.cat([edges[:1], torch.from_numpy(shares).cumsum(0)])


def _scattered(lot: Lot) -> Tensor:
    """The same where a bit for each number would be too much: ranks among the free ones, drawn until they differ."""
    ranks = torch.empty(0, dtype=torch.int64)
    while ranks.numel() < lot.count:  # drawing only what is missing keeps every set equally likely
        more = torch.randint(lot.free, (lot.count - ranks.numel(),), generator=lot.generator)
        ranks = torch.unique(torch.cat([ranks, more]))
    # rank r lies behind every taken number with at most r free ones before it
    return ranks + locate(lot.taken - torch.arange(lot.taken.numel()), ranks + 1)


def parted(cases: Sequence[tuple[Tensor, int]]) -> list[tuple[Tensor, Tensor]]:
    """Positions of the ``count`` highest of ``scores [u]``, and of the others, for each (scores, count).

    Of equal scores the lower position counts as the higher. Scores are floats, without NaN.

    Returns:
        int64 ``[count]`` and ``[u - count]`` for each, ascending.

    >>> parted([(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3)])
    [(tensor([0, 1, 3]), tensor([2]))]
    """
    kinds = {(scores.device.type, scores.dtype) for scores, _ in cases}
    if kinds not in ({("cpu", torch.float32)}, {("cpu", torch.float64)}):
        return [reference.parted(scores, count) for scores, count in cases]
    tasks: list[w.Words] = []
    found = []
    for scores, count in cases:
        total = scores.numel()
        best, others = torch.empty(count + 1, dtype=torch.int64), torch.empty(total - count + 1, dtype=torch.int64)
        room = torch.empty(BINS + total, dtype=torch.int32)
        tasks.append({
            w.X: scores.contiguous(), w.LINES: total, w.SAMPLES: count, w.GRADIENT: room, w.ORDER: room[BINS:],
            w.OUT: best, w.POINTER: others,
        })  # fmt: skip
        found.append((best[:count], others[: total - count]))
    if tasks:
        run_each("best", cases[0][0].dtype, tasks, sum(scores.numel() for scores, _ in cases))
    return found
