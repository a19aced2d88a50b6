"""What is refused before anything is looked up: ids that are none, settings that are no such number."""

from __future__ import annotations

import torch
from torch import Tensor

from realloc.errors import ConfigError


def check_ids(ids: Tensor) -> None:
    """Refuse what is no id.

    Raises:
        ConfigError: negative ids, or another dtype than int64 and int32.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ConfigError(f"ids are {ids.dtype}; pass int64 (a float cannot tell large ids apart)")
    if not torch.compiler.is_compiling() and ids.numel() and int(ids.min()) < 0:
        raise ConfigError(
            f"an id is {int(ids.min())}; ids are 0 and more: give missing values an id of their own, or padding_idx"
        )


def whole(name: str, value: object, least: int) -> None:
    """Refuse what is no integer from a least one on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it is an integer, {least} or more")
