"""Size of a weight against the other weights of its row and of its column."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.scores.score import Score
from realloc.scores.seen import Seen


def _measure(seen: Seen) -> Tensor:
    size = seen.total(seen.need("values").abs()).double()
    rows, columns = seen.grid
    row = torch.div(seen.places, columns, rounding_mode="floor")
    column = seen.places % columns
    # a row of zeros has no share to give: 0 / 0 becomes 0
    of_row = torch.bincount(row, size, rows)[row].clamp_min(torch.finfo(torch.float64).tiny)
    of_column = torch.bincount(column, size, columns)[column].clamp_min(torch.finfo(torch.float64).tiny)
    return size / of_row + size / of_column


relative_importance = Score("relative importance", frozenset({"values"}), _measure)
"""``|w_ij| / sum_j |w_ij| + |w_ij| / sum_i |w_ij|``, in [0, 2], over the units seen.

It keeps the last links of a neuron alive, where magnitude lets neurons die. Pass all held units of the site: the sums
run over what is seen.

Reference: RIA (Zhang et al., ICLR 2024), as CHTs uses it for removal (2501.19107, eq. 1). Where we differ: no 1e-5 is
added to the sums.
"""
