"""Giving parked slots back, in one explicit call: the only act that changes a shape."""

from __future__ import annotations

import torch

from realloc.pool.flat import FlatPool
from realloc.pool.masked import MaskedPool
from realloc.pool.ranks import RankPool
from realloc.pool.state import slotwise
from realloc.pool.widths import WidePool

Pool = FlatPool | RankPool | WidePool | MaskedPool


def needed(pool: Pool) -> int:
    """Units that a pool keeps: what it holds. One of vectors whose widths move keeps its room: layers may widen.

    That room is small beside the weights, and without it no layer could get a unit more than all have now.
    """
    if isinstance(pool, WidePool) and all(site.member.columns is None for site in pool.sites):
        return pool.capacity
    return pool.held


@torch.no_grad()
def compact(pool: Pool, optimizer: torch.optim.Optimizer | None, units: int) -> None:
    """Cut a pool, its gradient, its state and its columns to so many units. A masked pool only lowers its count."""
    if isinstance(pool, MaskedPool):
        pool.capacity = units
        return
    parameter, keep = pool.parameter, units * pool.unit_size
    if parameter.shape[0] == keep:
        return
    if optimizer is not None:
        for key, value in slotwise(optimizer, parameter).items():
            optimizer.state[parameter][key] = value[:keep].clone()
    parameter.grad = None
    values = parameter.data[:keep].clone()
    # a graph that still lives (the loop's last loss) holds the node that expects gradients of the old length, and torch
    # drops it only where the dtype changes
    parameter.data = values.new_empty(0, dtype=torch.bfloat16 if values.dtype == torch.float16 else torch.float16)
    parameter.data = values
    for name in pool.long_buffers:
        buffer = pool.owner._buffers[name]
        assert buffer is not None
        pool.owner._buffers[name] = buffer[:units].clone()
