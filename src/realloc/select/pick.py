"""Selecting at several sites at once, and trusting no selector with the budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from realloc.errors import StateError
from realloc.kernels.search import parted
from realloc.select.selector import Selector
from realloc.select.top_k import top_k


def pick(
    selector: Selector, cases: Sequence[tuple[Tensor, int]], generators: Sequence[Generator], part: str
) -> list[tuple[Tensor, Tensor]]:
    """Those selected of each site, and the others.

    A selection that would lose or double a unit is refused: the ledger sees only what became of it.
    """
    if selector is top_k:
        return parted(cases)
    picked = []
    for (scores, count), generator in zip(cases, generators, strict=True):
        among, chosen = scores.numel(), selector(scores, count, generator)
        if not torch.is_tensor(chosen) or chosen.ndim != 1 or chosen.dtype != torch.int64:
            kind = f"{chosen.ndim}-d {chosen.dtype}" if torch.is_tensor(chosen) else type(chosen).__name__
            raise StateError(f"{part} gave {kind}; return int64[k], the indices of the selected")
        inside = not chosen.numel() or (int(chosen[0]) >= 0 and int(chosen[-1]) < among)
        if chosen.numel() != count or not inside or bool((chosen.diff() <= 0).any()):
            raise StateError(
                f"{part} selected {chosen.numel()} units where {count} of {among} were asked for; "
                "return so many different indices, ascending"
            )
        left = torch.ones(among, dtype=torch.bool, device=chosen.device)
        left[chosen] = False
        picked.append((chosen, left.nonzero().flatten()))
    return picked
