"""Where the present links say that a link is missing: the Cannistraci-Hebb rule on the graph of one layer.

A layer is a bipartite graph: output units ``u`` (rows), input units ``v`` (columns), and a link where a unit is held.
A missing link ``(u, v)`` is scored by its paths of length three, ``u - z1 - z2 - v``. Every node ``z`` in the middle of
such a path adds

    CH2-L3n:  (i_z + 1) / (e_z + 1)            CH3-L3n:  1 / (e_z + 1)

with ``i_z`` the links of ``z`` to middle nodes of the other side (inside the local community) and ``e_z`` its links to
anything else but the two ends. For ``z2`` in the column of ``v``, ``i = |N(u) & N(z2)|`` and
``e = degree(z2) - i - 1``; for ``z1`` in the row of ``u`` the same with rows and columns exchanged. With ``M`` the
mask, this is two products of masks (``M M^T``, ``M^T M``), one elementwise map, and two products with ``M``.

Reference: Zhang et al., NeurIPS 2025 (CHTs, 2501.19107, section 3.1 and appendix C, CH2-L3n). Where we differ: the
products run over the held links only, in blocks of rows, so nothing of size rows x rows is ever held; a score of
exactly zero stays zero (the authors add 1e-5 when there are too few positive ones: our ``sampled`` selector then draws
evenly among the zeros). No gradient is needed. Meant for places that are not held; for a held place its own link is
counted too. With blocks, the nodes are the rows and columns of the block grid. Link counts are exact; the sums run in
float32, in a fixed order, which is four times as fast as float64 and repeats bit by bit for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from realloc.scores.score import Score
from realloc.scores.seen import Seen

_ELEMENTS = 1 << 20
"""Elements of float32 in one working block: 4 MiB, of which about five live at once."""

_Weight = Callable[[Tensor, Tensor], Tensor]


def _ch2(inside: Tensor, outside: Tensor) -> Tensor:
    return (inside + 1) / (outside + 1)


def _ch3(inside: Tensor, outside: Tensor) -> Tensor:
    return 1 / (outside + 1)


def _pointer(sorted_keys: Tensor, count: int) -> Tensor:
    return torch.searchsorted(sorted_keys, torch.arange(count + 1, device=sorted_keys.device))


def _one_side(link: Tensor, query: Tensor, grid: tuple[int, int], weight: _Weight) -> Tensor:
    """Sum the weights of the middle rows ``z2`` of each queried place; ``link`` and ``query`` ascend, row-major."""
    rows, columns = grid
    row, column = torch.div(link, columns, rounding_mode="floor"), link % columns
    by_column = torch.argsort(column, stable=True)
    row_pointer, column_pointer = _pointer(row, rows), _pointer(column[by_column], columns)
    row_of_column = row[by_column]
    degree = row_pointer.diff().float().unsqueeze(1)
    query_row, query_column = torch.div(query, columns, rounding_mode="floor"), query % columns
    result = torch.zeros(len(query), device=query.device)
    width = max(1, min(rows, _ELEMENTS // (rows + columns)))
    for start in range(0, rows, width):
        stop = min(start + width, rows)
        first, last = torch.searchsorted(query_row, torch.tensor([start, stop], device=query.device)).tolist()
        if first == last:
            continue
        a, b = int(row_pointer[start]), int(row_pointer[stop])
        block = torch.zeros(columns, stop - start, device=query.device)
        block[column[a:b], row[a:b] - start] = 1.0
        # [rows, width]: columns that row z shares with row u
        inside = embedding_bag(column, block, row_pointer, mode="sum", include_last_offset=True)
        outside = (degree - inside - 1).clamp_min_(0)
        share = torch.where(inside > 0, weight(inside, outside), 0.0)
        total = embedding_bag(row_of_column, share, column_pointer, mode="sum", include_last_offset=True)
        result[first:last] = total[query_column[first:last], query_row[first:last] - start]
    return result


def _measure(seen: Seen, weight: _Weight) -> Tensor:
    rows, columns = seen.grid
    held, places = seen.held.long(), seen.places.long()
    if not len(held) or not len(places):
        return torch.zeros(len(places), dtype=torch.float64, device=places.device)
    from_rows = _one_side(held, places, (rows, columns), weight)
    # the other side is the same sum on the transposed graph
    turned, order = torch.sort(_turn(places, rows, columns))
    from_columns = torch.empty_like(from_rows)
    from_columns[order] = _one_side(torch.sort(_turn(held, rows, columns)).values, turned, (columns, rows), weight)
    return from_rows.double() + from_columns.double()


def _turn(places: Tensor, rows: int, columns: int) -> Tensor:
    return places % columns * rows + torch.div(places, columns, rounding_mode="floor")


def _measure_ch2(seen: Seen) -> Tensor:
    return _measure(seen, _ch2)


def _measure_ch3(seen: Seen) -> Tensor:
    return _measure(seen, _ch3)


topology = Score("topology", frozenset(), _measure_ch2)
"""CH2-L3n, the rule of CHTs: rewards middle nodes with many links inside and few outside the local community."""

topology_ch3 = Score("topology CH3", frozenset(), _measure_ch3)
"""CH3-L3n: only punishes links to the outside."""
