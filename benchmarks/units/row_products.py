"""Rows of their own on top of products of rows: would they pay? Owners are those most frequent, known beforehand.

    python benchmarks/units/row_products.py

The best case for rows that ids own, before anything of it is built: a share of the rows goes to the ids that are most
frequent in the training ratings; all others are hashed, or read a product or sum of two rows. Net, data and length as
in rows.py; rate by the held-out ratings of seed 0, three seeds. Where ids own rows, 8 % of the bytes go to a sketch.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
from bench import head, row, title
from ratings import NAMES, Ratings, ratings
from torch import Tensor, nn

from realloc.kernels.seek import hashed
from realloc.nn.budget import Costs, bytes_of
from rows import BATCH, DIM, EPOCHS, START, Net, judged, one_epoch

KINDS = ("hashing", "double hashing", "double hashing, added", "quotient-remainder", "quotient-remainder, added")
SHARES, SIZES, SKETCH = (0.0, 0.25, 0.5), (10, 2), 0.08
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
SEEDS = 3


class Static(nn.Module):
    """Rows by the ids' places, fixed from the start: own rows behind the shared ones."""

    def __init__(self, found: Ratings, percent: int, kind: str, share: float) -> None:
        super().__init__()
        costs = Costs(DIM, 4, 2, 0)
        rows = int(bytes_of(f"{percent}%", costs, found.ids) // costs.row * (1 - SKETCH * (share > 0)))
        own, every = int(rows * share), torch.arange(found.ids)
        shared, self.added = rows - own, kind.endswith("added")
        frequent = torch.bincount(found.pairs[found.train].flatten(), minlength=found.ids).argsort(descending=True)
        owned = torch.full((found.ids,), -1)
        owned[frequent[:own]] = shared + torch.arange(own)
        if kind.startswith("quotient"):
            first, second = _quotients(owned, shared)
        else:
            first, second = hashed(every, 0, shared, shared)
        self.single = kind == "hashing"
        self.register_buffer("first", torch.where(owned >= 0, owned, first))
        self.register_buffer("second", second)
        self.register_buffer("alone", (owned >= 0).unsqueeze(1))
        spread = torch.full((rows, 1), START)
        if not self.single:
            spread[:shared] = START / 2**0.5 if self.added else START**0.5
        self.weight = nn.Parameter(torch.randn(rows, DIM) * spread)

    def forward(self, ids: Tensor) -> Tensor:
        one = self.weight[self.first[ids]]
        if self.single:
            return one
        other = self.weight[self.second[ids]]
        return one + other.where(~self.alone[ids], 0.0) if self.added else one * other.where(~self.alone[ids], 1.0)


def _quotients(owned: Tensor, shared: int) -> tuple[Tensor, Tensor]:
    """Rows of quotients and of remainders of the ids without a row, counted among themselves."""
    rest = (owned < 0).nonzero().flatten()
    fits = (m for m in range(min(shared - 1, len(rest)), 0, -1) if -(-len(rest) // m) + m <= shared)
    modulus = next(fits, 0)
    if not modulus:
        raise ValueError("does not fit")
    number = torch.zeros_like(owned)
    number[rest] = torch.arange(len(rest))
    return number // modulus, number % modulus + -(-len(rest) // modulus)


def run(data: str, percent: int, kind: str, share: float, rate: float, seed: int) -> tuple[float, float]:
    """RMSE on held-out and test ratings, of the epoch with the lower held-out one."""
    found = ratings(data)
    torch.manual_seed(seed)
    net = Net(Static(found, percent, kind, share))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(found.train) // BATCH))
    order, best = torch.Generator().manual_seed(seed), (float("inf"), float("inf"))
    for _ in range(EPOCHS):
        one_epoch(net, found, order, optimizer, falling)
        best = min(best, tuple(judged(net, found, part)["rmse"] for part in (found.held, found.test)))
    return best


def main() -> None:
    torch.set_num_threads(1)
    print(title())
    print(head(["data", "bytes", "rows", *(f"{share:.0%} owned" for share in SHARES)]))
    for data in NAMES:
        for percent in SIZES:
            for kind in KINDS:
                cells = []
                for share in SHARES:
                    one = partial(run, data, percent, kind, share)
                    try:
                        tried = {rate: one(rate, 0) for rate in RATES}
                    except ValueError as error:
                        cells.append(str(error))
                        continue
                    rate = min(tried, key=lambda rate: tried[rate][0])
                    tests = [tried[rate][1], *(one(rate, seed)[1] for seed in range(1, SEEDS))]
                    cells.append(f"{statistics.mean(tests):.4f}")
                print(row([NAMES[data], f"{percent} %", kind, *cells]), flush=True)


if __name__ == "__main__":
    main()
