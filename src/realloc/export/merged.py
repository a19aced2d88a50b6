"""A plain copy of a model with ranks or deltas: they are added to the weights they stand beside."""

from __future__ import annotations

from typing import Final

from torch import nn

from realloc.errors import ConfigError
from realloc.export.dense import dense
from realloc.pool.found import find

BESIDE: Final = ("rank", "delta")


def merged(model: nn.Module) -> nn.Module:
    """Copy the model with ``W + scale * B'A``, or ``W + S``, in place of W: same outputs, old parameters.

    Of a peft model comes the model inside, without what peft put around it.

    Args:
        model: with ranks or deltas: prepared or attached, wrapped or not; not changed.

    Raises:
        ConfigError: a model without any.

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
    if holdings is None or not any(site.storage in BESIDE for site in holdings.sites.values()):
        raise ConfigError(
            f"this {type(model).__name__} has no ranks or deltas to merge; export.dense(model) copies any model"
        )
    return _without_peft(dense(model))


def _without_peft(model: nn.Module) -> nn.Module:
    inside = getattr(model, "get_base_model", None)
    if not callable(inside):
        return model
    found = inside()
    assert isinstance(found, nn.Module)
    for module in list(found.modules()):
        for name, child in list(module._modules.items()):
            copies = child._modules.get("modules_to_save") if child is not None else None
            if child is not None and "original_module" in child._modules and isinstance(copies, nn.ModuleDict):
                module._modules[name] = next(iter(copies.values()))
    return found
