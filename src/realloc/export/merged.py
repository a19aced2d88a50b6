"""A plain copy of a model with ranks: their product is added to the weights they stand beside."""

from __future__ import annotations

from torch import nn

from realloc.errors import ConfigError
from realloc.export.dense import dense
from realloc.pool.holdings import find
from realloc.sites.rank import RankSite


def merged(model: nn.Module) -> nn.Module:
    """Copy the model with ``W + scale * B'A`` in place of W: same outputs, same parameters as before `prepare`.

    Args:
        model: with ranks: prepared or attached, wrapped or not; not changed.

    Raises:
        ConfigError: a model without ranks.

    Example:
        >>> import torch, realloc
        >>> from realloc import methods
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> _ = realloc.prepare(model, methods.lora(rank=2))
        >>> x = torch.ones(1, 4)
        >>> torch.allclose(realloc.export.merged(model)(x), model(x), atol=1e-6)
        True
    """
    holdings = find(model)
    if holdings is None or not any(isinstance(site, RankSite) for site in holdings.sites.values()):
        raise ConfigError(f"this {type(model).__name__} has no ranks to merge; export.dense(model) copies any model")
    return dense(model)
