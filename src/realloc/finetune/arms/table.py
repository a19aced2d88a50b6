"""The arms by name. A new one costs its file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import nn

from realloc.errors import ConfigError, nearest, plain
from realloc.finetune.arms.arm import Kind
from realloc.finetune.arms.deltas import DELTAS
from realloc.finetune.arms.full import full
from realloc.finetune.arms.layers import LAYERS
from realloc.finetune.arms.peft_adalora import peft_adalora, peft_adalora_within
from realloc.finetune.arms.peft_lora import RATE, peft_lora, rank_within
from realloc.finetune.arms.ranges import check_range
from realloc.finetune.arms.ranks import RANKS
from realloc.finetune.arms.rows import ROWS
from realloc.finetune.weights import Loaded
from realloc.train.config import Setting

FOCUS: Final = "focus"  # decides by measurement which of the others trains
KINDS: Final[Mapping[str, Kind]] = {
    "full": Kind(full, 3e-4, {ROWS: True}),
    "peft_adalora": Kind(peft_adalora, 1.2e-2, {"rank": 8}, peft_adalora_within, moves=True),
    "peft_lora": Kind(peft_lora, RATE, {"rank": 8}, rank_within),
    **DELTAS,
    **LAYERS,
    **RANKS,
}
NAMES: Final = tuple(sorted([FOCUS, *KINDS]))


def check(name: str, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
    """The settings of a method, defaults filled in.

    Raises:
        ConfigError: an unknown method or setting, with the nearest names; a value of another kind than the default, or
            out of range.
    """
    if name not in NAMES:
        raise ConfigError(
            f"method '{plain(name)}' is unknown; fine-tuning has {', '.join(NAMES)}{nearest(name.lower(), NAMES, 1)}"
        )
    known: Mapping[str, Setting] = {"share": 0.31, "trial": 0.04} if name == FOCUS else KINDS[name].settings
    for key, value in settings.items():
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no settings"
            raise ConfigError(f"setting '{plain(key)}' is unknown: '{name}' {takes}{nearest(key, known, 1)}")
        kind = type(known[key])
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not fits:
            raise ConfigError(f"setting '{key}' of '{name}' is {plain(str(value))}; give a value like {known[key]}")
        check_range(name, key, value)
    return {**known, **settings}


def check_cache(name: str, limit: str | None) -> None:
    """Refuse a limit of a cache that the method does not have.

    Raises:
        ConfigError: it has none.
    """
    having = [FOCUS, *(key for key, kind in KINDS.items() if kind.caches)]
    if limit is not None and name not in having:
        raise ConfigError(
            f"--cache {plain(limit)} is of the frozen layers' activations, and '{name}' keeps none; leave --cache out, "
            f"or take one of {', '.join(having)}"
        )


def within(name: str, settings: Mapping[str, Setting], most: int, loaded: Loaded) -> dict[str, Setting]:
    """Settings with which at most so many parameters train, the head among them.

    Raises:
        ConfigError: a method whose share cannot be set, or a budget below its least.
    """
    fit = KINDS[name].within
    if fit is None:
        able = ", ".join(key for key, kind in KINDS.items() if kind.within is not None)
        raise ConfigError(
            f"method '{name}' has no setting for a number of parameters; give seconds (--budget 60s), or take one of "
            f"{able}"
        )
    return fit(settings, most - head_size(loaded.model, loaded.base), loaded)


def head_size(model: nn.Module, base: nn.Module) -> int:
    """Parameters outside the pre-trained part."""
    inside = {id(p) for p in base.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in inside)
