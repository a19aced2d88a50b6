"""Quotient and remainder: two small tables whose product tells every id apart. A baseline at equal bytes."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from realloc.errors import ConfigError
from realloc.kernels.seek import check_ids
from realloc.nn.budget import Costs, bytes_of
from realloc.nn.checks import whole
from realloc.nn.factored import Factored


@final
class QuotientRemainder(Factored):
    """Each id reads the row of its quotient times that of its remainder, elementwise, so no two ids read the same.

    Args:
        num_ids: ids of the full table.
        dim: numbers in a row.
        rows: the budget, an integer or a part of the full table such as "10%"; see `Rows`. Of it as many rows as can
            be are remainders, since those tell most ids apart.
        moments: numbers that the optimizer keeps for each weight.

    Shapes: ids ``[...]``, int64 or int32, below ``num_ids``; output ``[..., dim]``; ``weight [S, dim]``, the quotients
    first.

    Raises:
        ConfigError: fewer rows than about 2 sqrt(num_ids), or more than the full table; in `forward`, ids outside.

    Source: Shi et al. 2020 (1909.02107), with the elementwise product. Where we differ: one parameter; the modulus
    follows from the budget; both factors start from a standard normal.

    >>> _ = torch.manual_seed(0)
    >>> layer = QuotientRemainder(1000, 4, rows=100)
    >>> layer.modulus, layer.quotients, layer.weight.shape
    (88, 12, torch.Size([100, 4]))
    """

    def __init__(self, num_ids: int, dim: int, rows: int | str, *, moments: int = 2) -> None:
        super().__init__()
        for name, value in (("num_ids", num_ids), ("dim", dim)):
            whole(name, value, 1)
        whole("moments", moments, 0)
        costs = Costs(dim, torch.get_default_dtype().itemsize, moments, 0)
        self.budget = bytes_of(rows, costs, num_ids)
        count = self.budget // costs.row
        self.num_ids, self.dim, self.moments = num_ids, dim, moments
        self.modulus = _modulus(num_ids, count)
        self.quotients = -(-num_ids // self.modulus)
        self.weight = nn.Parameter(torch.empty(self.quotients + self.modulus, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Both factors from a standard normal, so that their product has variance 1."""
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids ``[...]``."""
        check_ids(input)
        if input.numel() and int(input.max()) >= self.num_ids:
            raise ConfigError(
                f"an id is {int(input.max())}, and num_ids is {self.num_ids}; an open vocabulary needs Embedding"
            )
        ids = input.long()
        quotient = nn.functional.embedding(ids // self.modulus, self.weight)
        return quotient * nn.functional.embedding(ids % self.modulus + self.quotients, self.weight)

    def extra_repr(self) -> str:
        """What a print of the model shows."""
        return f"{self.num_ids}, {self.dim}, {self.quotients} quotients, {self.modulus} remainders"


def _modulus(num_ids: int, rows: int) -> int:
    """The largest modulus whose quotients and remainders fit.

    Raises:
        ConfigError: none fits.
    """
    for modulus in range(min(rows - 1, num_ids), 0, -1):
        quotients = -(-num_ids // modulus)
        if quotients + modulus <= rows:
            return modulus
        if quotients > rows:
            break
    raise ConfigError(
        f"rows buys {rows:,} rows, and {num_ids:,} ids need about {2 * int(num_ids**0.5) + 1:,} as quotients and "
        "remainders; raise rows"
    )
