"""End a pre-trained model earlier: the layers above some depth are dropped, for good."""

from __future__ import annotations

from typing import Any

from torch import nn

from realloc.errors import ConfigError, plain
from realloc.sites.blocks import blocks_of


def shorten(model: nn.Module, keep: int) -> tuple[str, ...]:
    """Keep the ``keep`` lowest layers of a model of transformers, in place; call it before the optimizer is made.

    The top layers of a pre-trained model are bent to what it was trained for, and may know less of another task than
    those below (`realloc.probe_depths` says so). Without them every step, and later every answer, costs less. What is
    saved from then on is a plain model of ``keep`` layers, since its config says so too.
    (Re-initialising or dropping top layers: Zhang et al. 2021, 2006.05987; the rule that picks how many is ours.)

    Args:
        model: a model of transformers, or a module that holds one.
        keep: layers, from the input, 1 or more.

    Returns:
        Names of the layers that were dropped; empty where the model has no more than ``keep``.

    Raises:
        ConfigError: no such model, or no such number of layers.
    """
    blocks = blocks_of(model)
    config = getattr(blocks.base, "config", None)
    listed = model.get_submodule(blocks.name)
    if not isinstance(listed, nn.ModuleList) or getattr(config, "num_hidden_layers", None) != len(listed):
        raise ConfigError(
            f"{plain(blocks.name) or type(model).__name__!r} is no list of layers whose number stands in a config of "
            "transformers; only such models are shortened"
        )
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= len(listed):
        raise ConfigError(f"keep is {keep!r}; the model has {len(listed)} layers: keep 1 to {len(listed)} of them")
    _say(config, len(listed), keep)
    del listed[keep:]
    return blocks.names[keep:]


def _say(config: Any, layers: int, keep: int) -> None:
    """In the config: the number, and whatever is listed layer by layer (the kind of attention, in some decoders)."""
    config.num_hidden_layers = keep
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and len(kinds) == layers:
        config.layer_types = kinds[:keep]
