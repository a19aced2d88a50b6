"""Double hashing: every id reads the product of two hashed rows. Static; what moved rows have to beat."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError
from realloc.kernels.seek import two_rows
from realloc.nn.budget import Costs, bytes_of
from realloc.nn.checks import whole
from realloc.nn.factored import Factored


@final
class DoubleHashing(Factored):
    """Each id reads one hashed row times another, elementwise: S rows tell about S^2 / 2 ids apart.

    Args:
        num_ids: ids of the full table, for "10%" and for the check of the budget; None: an open vocabulary. Ids from
            ``num_ids`` on are looked up like any other.
        dim: numbers in a row.
        rows: the budget: an integer, a part of the full table such as "2%", or bytes such as "200kB"; see `Rows`.
        moments: numbers that the optimizer keeps for each weight.

    Shapes: ids ``[...]``, int64 or int32, 0 to 2^63 - 1; output ``[..., dim]``; ``weight [S, dim]``.

    Raises:
        ConfigError: a number out of range, a budget below one row or above the full table; in `forward`, negative ids.

    Source: Zhang et al. 2020 (2007.14523), double hashing. Where we differ: the two rows are multiplied, as in
    quotient-remainder (1909.02107), where the paper adds them; both come from one table; no id has a row of its own.
    Measured (benchmarks/results/units.md): at 2 to 10 % of the bytes nearer to the full table than hashing and than
    rows that hot ids own.

    >>> _ = torch.manual_seed(0)
    >>> layer = DoubleHashing(100_000, 16, rows="1%")
    >>> layer(torch.tensor([[3, 99_999], [2**62, 3]])).shape, layer.weight.shape
    (torch.Size([2, 2, 16]), torch.Size([1000, 16]))
    """

    def __init__(self, num_ids: int | None, dim: int, rows: int | str, *, moments: int = 2) -> None:
        super().__init__()
        whole("dim", dim, 1)
        whole("moments", moments, 0)
        if num_ids is not None:
            whole("num_ids", num_ids, 1)
        costs = Costs(dim, torch.get_default_dtype().itemsize, moments, 0)
        self.budget = bytes_of(rows, costs, num_ids)
        count = self.budget // costs.row
        if not count:
            raise ConfigError(
                f"rows buys {self.budget:,} bytes, and a row of {dim} numbers costs {costs.row:,}; raise it"
            )
        self.num_ids, self.dim, self.moments = num_ids, dim, moments
        self.weight = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All rows from a standard normal, so that a product of two has variance 1."""
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor, table: int = 0) -> Tensor:
        """Look up ids ``[...]``; ids of several columns that share the rows are told apart by the number of a table."""
        first, second = two_rows(input.reshape(-1), table, len(self.weight))
        found = nn.functional.embedding(first, self.weight) * nn.functional.embedding(second, self.weight)
        return found.view(*input.shape, self.dim)

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        return f"{self.num_ids}, {self.dim}, {len(self.weight):,} rows"
