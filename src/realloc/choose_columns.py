"""Which linear layer sees the inputs of a model."""

from __future__ import annotations

from glob import escape
from typing import Final

from torch import nn

from realloc.choose import LINEAR
from realloc.errors import ConfigError, nearest, plain
from realloc.methods.column_method import ColumnMethod
from realloc.methods.method import Method
from realloc.pool.found import movers
from realloc.pool.holdings import Holdings
from realloc.pool.names import FIRST

# they scale each input by itself, so that a column behind them is still one input of the model
APART: Final = (nn.LayerNorm, nn.RMSNorm)


def method_over(root: nn.Module, method: ColumnMethod, holdings: Holdings | None) -> Method:
    """The method of weights that moves the columns of this model. Changes nothing.

    Args:
        root: the user's model, prepared or not.
        method: how many columns, and how they move.
        holdings: what the model holds, where it is prepared already.

    Raises:
        ConfigError: no linear layer sees the input, a named layer that is none, or fewer inputs than k.

    >>> from realloc.methods.random_columns import random_columns
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> made = method_over(model, random_columns(2), None)
    >>> made.where.layers, made.density, made.asked
    (('1.weight',), 0.25, '2 inputs')
    """
    if holdings is not None:
        site = next(iter(holdings.sites.values()))
        return method.at(escape(site.name), site.grid.width)
    name, layer = _first(root) if method.layer is None else (method.layer, _named(root, method.layer))
    full = f"{name}.weight" if name else "weight"
    return method.at(escape(full), layer.in_features)


def _named(root: nn.Module, name: str) -> nn.Linear:
    modules = dict(root.named_modules())
    found = modules.get(name)
    linear = [n for n, m in modules.items() if type(m) in LINEAR]
    if found is None:
        raise ConfigError(f"no layer {plain(name)!r}{nearest(name, linear)}")
    if not isinstance(found, nn.Linear) or type(found) not in LINEAR:
        raise ConfigError(
            f"{plain(name)!r} is a {type(found).__name__}, which has no input columns; name a plain nn.Linear"
        )
    return found


def _first(root: nn.Module) -> tuple[str, nn.Linear]:
    """The first layer with weights that the model declares, if it is linear."""
    moved = movers(root)
    for name, module in root.named_modules():
        theirs = next((site for site in moved if site.rpartition(".")[0] == name), None)
        if theirs is not None and isinstance(module, nn.Linear):
            raise ConfigError(
                f"{plain(theirs)} sees the input of the model, and {moved[theirs]} moves it already; detach() that "
                "handle, or name another layer: method.on(...)"
            )
        if isinstance(module, nn.Linear) and type(module) in LINEAR:
            return name, module
        own = (parameter for key, parameter in module._parameters.items() if not key.startswith(FIRST))
        mixes = any(parameter is not None and parameter.ndim > 1 for parameter in own)
        if mixes and not isinstance(module, APART):
            raise ConfigError(_why(root, name, module))
    raise ConfigError(
        f"{type(root).__name__} has no nn.Linear, so none of its inputs has a column; give a model whose first layer "
        "is linear"
    )


def _why(root: nn.Module, name: str, module: nn.Module) -> str:
    what = f"{plain(name) or type(root).__name__!r}, a {type(module).__name__},"
    linear = next((n for n, m in root.named_modules() if n and type(m) in LINEAR), None)
    named = f"; to choose among what enters a later layer, name it: method.on({linear!r})" if linear else ""
    if isinstance(module, nn.modules.conv._ConvNd):
        reason = "a convolution has the same weights at every place, so no place of the input has a column"
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        reason = "an embedding looks rows up and has no input columns"
    else:
        reason = "its weights are not those of a plain nn.Linear"
    return f"the input enters {what} first: {reason}; give a model whose first layer is linear{named}"
