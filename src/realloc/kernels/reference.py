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


def gather_slots(tensor: Tensor, source: Tensor, start: Tensor | float) -> None:
    """``new[i] = old[source[i]]``; where source is -1, ``start``, or what it says for that slot. In place."""
    flat = tensor.reshape(-1)
    new = flat[source.clamp(min=0)] if flat.numel() else flat.clone()
    born = source < 0
    if isinstance(start, Tensor):
        new[born] = start.to(new.dtype).flatten()[born]
    else:
        new.masked_fill_(born, start)
    tensor.copy_(new.view(tensor.shape))


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


def merge(held: Tensor, gone: Tensor, come: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """``held`` less ``gone`` plus ``come``, and where each was in ``held`` counted from ``first``, or -1."""
    stays = ~torch.isin(held, gone)
    spot = torch.cat([stays.nonzero().flatten() + first, torch.full_like(come, -1)])
    places = torch.cat([held[stays], come])
    order = places.argsort()
    return places[order], spot[order]


def parted(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions of the ``count`` highest, of equal ones the lower, and of the others; ascending."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values, order[count:].sort().values


def draw(below: list[int], high: int, chunk: int, seed: int, taken: Tensor) -> Tensor:
    """The free integers that splitmix64 (Steele, Lea and Flood, OOPSLA 2014) meets first in each chunk, ascending.

    A number is the high half of a product (Lemire 1805.10941), whose low half must not be among the surplus ones; 64
    random bits make two of them, the low half first.
    """
    found: set[int] = set()
    held = set(taken.tolist())
    for number, wanted in enumerate(below[1:]):
        state, span = _mixed(seed + number), min(chunk, high - number * chunk)
        turn = 0
        while len(found) < wanted:
            state, turn = state + (0 if turn % 2 else 0x9E3779B97F4A7C15), turn + 1
            half = _mixed(state) % 2**32 if turn % 2 else _mixed(state) >> 32
            place, low = divmod(half * span, 2**32)
            if low >= 2**32 % span and number * chunk + place not in held:
                found.add(number * chunk + place)
    return torch.tensor(sorted(found), dtype=torch.int64)


def _mixed(state: int) -> int:
    whole = 2**64
    mixed = state % whole
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % whole
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % whole
    return mixed ^ (mixed >> 31)


def places(pointer: Tensor, columns: Tensor, width: int) -> Tensor:
    """int64: ``row * width + column`` of a CSR index."""
    row = torch.repeat_interleave(torch.arange(pointer.numel() - 1, device=pointer.device), pointer.long().diff())
    return row * width + columns


def rows(places: Tensor, width: int, pointer: Tensor, columns: Tensor) -> None:
    """The inverse, written into int32 ``pointer`` and ``columns``."""
    counts = torch.bincount(places // width, minlength=pointer.numel() - 1)
    pointer.copy_(torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    columns.copy_(places % width)
