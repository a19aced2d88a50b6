"""A plain dense copy of an attached model."""

from __future__ import annotations

import copy

from torch import nn

from realloc.pool.found import everywhere, root_of
from realloc.pool.names import FIRST
from realloc.pool.restore import densify
from realloc.pool.rows import pools_of, take_out


def dense(model: nn.Module) -> nn.Module:
    """Copy the model with ordinary layers: same outputs, same parameter names and shapes as before `attach`.

    Args:
        model: attached, prepared, wrapped or plain; not changed.

    Example:
        >>> import torch, realloc
        >>> from realloc import methods
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> _ = realloc.prepare(model, methods.static(density=0.5))
        >>> [name for name, _ in realloc.export.dense(model).named_parameters()]
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    for _, source in everywhere(model):
        source.stamp()  # refuses a copy whose values and places do not belong together
    twin = copy.deepcopy(root_of(model))
    everything = [one for _, one in everywhere(twin)]
    for holdings in everything:
        densify(holdings)
    for pool in pools_of(twin):
        pool.sure()
        take_out(pool, None, {})
    for module in twin.modules():  # what decisions collect, and what layers and rates keep
        for name in [name for name in module._buffers if name.startswith(FIRST)]:
            del module._buffers[name]
    return twin
