"""The kernels in plain torch: what each fast one is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def elements_of(
    extents: Tensor, site: int, rowptr: Tensor, columns: Tensor, in_features: int, r: int, c: int
) -> Tensor:
    """Position in the dense ``[out, in]`` of each slot of a site, int64."""
    first, last = extents[site : site + 2].tolist()
    mine = columns[first:last].long()
    row = torch.repeat_interleave(torch.arange(rowptr.numel() - 1, device=mine.device), rowptr.long().diff())
    down = torch.arange(r, device=mine.device)[None, :, None]
    right = torch.arange(c, device=mine.device)[None, None, :]
    return ((row[:, None, None] * r + down) * in_features + mine[:, None, None] * c + right).flatten()


def packed_weight(
    values: Tensor, whole: bool, extents: Tensor, site: int, rowptr: Tensor, columns: Tensor,
    out_features: int, in_features: int, r: int, c: int, tap: int = 0,
) -> Tensor:  # fmt: skip
    """The dense weight ``[out, in]``."""
    spot = elements_of(extents, site, rowptr, columns, in_features, r, c)
    start = int(extents[site]) * r * c if whole else 0
    mine = values.reshape(-1)[start : start + spot.numel()]
    return values.new_zeros(out_features * in_features).index_copy(0, spot, mine).view(out_features, in_features)


def packed_linear(
    x: Tensor, values: Tensor, bias: Tensor | None, whole: bool, extents: Tensor, site: int, rowptr: Tensor,
    columns: Tensor, compute: Tensor, out_features: int, in_features: int, r: int, c: int, tap: int = 0,
) -> Tensor:  # fmt: skip
    """``x @ weight.T + bias``."""
    weight = packed_weight(values, whole, extents, site, rowptr, columns, out_features, in_features, r, c)
    return F.linear(x, weight, bias)


def gather_slots(tensor: Tensor, source: Tensor, fresh: Tensor | None = None, fill: float = 0.0) -> None:
    """``new[i] = old[source[i]]``; where source is -1, the next of ``fresh`` or ``fill``. In place."""
    flat = tensor.view(-1)
    new = flat[source.clamp(min=0)] if flat.numel() else flat.clone()
    born = source < 0
    if fresh is None:
        new.masked_fill_(born, fill)
    else:
        new[born] = fresh.to(new.dtype).flatten()
    flat.copy_(new)


def candidate_gradient(pairs: list[tuple[Tensor, Tensor]], rows: Tensor, columns: Tensor, r: int, c: int) -> Tensor:
    """``[u, r * c]``: sum over pairs (x, gy) of ``gy[:, o] . x[:, j]`` at the elements of the given units."""
    down, right = torch.arange(r, device=rows.device), torch.arange(c, device=rows.device)
    o = (rows[:, None, None] * r + down[None, :, None]).expand(-1, r, c).reshape(rows.numel(), r * c)
    j = (columns[:, None, None] * c + right[None, None, :]).expand(-1, r, c).reshape(rows.numel(), r * c)
    total = pairs[0][0].new_zeros(rows.numel(), r * c)
    for x, gy in pairs:
        total += (gy.t() @ x)[o, j]
    return total


def row_block_gradient(pairs: list[tuple[Tensor, Tensor]], first: int, last: int) -> Tensor:
    """``[last - first, in]``: rows of the dense gradient."""
    return torch.stack([gy[:, first:last].t() @ x for x, gy in pairs]).sum(0)
