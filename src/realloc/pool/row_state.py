"""Taking the state that an optimizer has of a whole table into a pool of its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.errors import ConfigError, plain
from realloc.pool.rows import Fresh, RowPool


def moved_ids(
    optimizer: torch.optim.Optimizer, parameter: Tensor, shape: tuple[int, int], gradient: Tensor | None, fresh: Fresh
) -> Tensor:
    """Ids whose row has a gradient, or state that a fresh optimizer would not have written; sorted int64."""
    marked = torch.zeros(shape[0], dtype=torch.bool, device=parameter.device)
    for key, value in optimizer.state.get(parameter, {}).items():
        if torch.is_tensor(value) and value.shape == shape:
            marked |= (value != fresh.get(key, 0.0)).any(1)
    if gradient is not None:
        marked |= (gradient != 0).any(1)
    return marked.nonzero().flatten()


def check_room(name: str, ids: Tensor, rows: int) -> None:
    """Refuse a budget below the rows that are in training already.

    Raises:
        ConfigError: nothing was changed.
    """
    if ids.numel() > rows:
        raise ConfigError(
            f"{plain(name)}: {ids.numel():,} rows have moments or a gradient already, the budget is {rows:,}; raise "
            "it, or attach() before training (weight decay that is coupled with the gradient gives every row moments)"
        )


@torch.no_grad()
def carry_rows_in(
    pool: RowPool, optimizer: torch.optim.Optimizer, ids: Tensor, gradient: Tensor | None, fresh: Fresh
) -> None:
    """Give rows to ids that were in training before, with the state and the gradient that they had."""
    parameter, table = pool.parameter, pool.table
    kept = {}
    for key, value in optimizer.state.get(parameter, {}).items():
        if torch.is_tensor(value) and value.shape == table.shape:
            kept[key] = torch.full_like(parameter, fresh.get(key, 0.0), dtype=value.dtype)
            kept[key][: ids.numel()] = value[ids]
    pool.move(ids[:0], ids, 0, None, fresh)
    pool.book.add("acquired", ids.numel())
    for key, value in kept.items():
        optimizer.state[parameter][key] = value
    if gradient is not None:
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[: ids.numel()] = gradient[ids]
