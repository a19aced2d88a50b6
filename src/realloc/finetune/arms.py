"""The ways to spend a fine-tuning budget, by name. A new one costs its maker and one line in the table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import nn

from realloc.attach import attach
from realloc.cache.settings import Cache
from realloc.errors import ConfigError, nearest, plain
from realloc.finetune.weights import Loaded
from realloc.layer_handle import LayerHandle
from realloc.methods.autofreeze import autofreeze
from realloc.methods.badam import badam
from realloc.methods.layer_gradient import layer_gradient
from realloc.methods.layers import LayerMethod
from realloc.methods.lisa import lisa
from realloc.methods.random_layers import random_layers
from realloc.methods.topk import topk
from realloc.record.sink import Sink
from realloc.schedule import every
from realloc.sites.blocks import blocks_of
from realloc.train.config import Setting

HEAD_RATE: Final = 1e-3  # the least a new head trains at
TURNS: Final = 20  # choices of layers in a run


@final
@dataclass(frozen=True, eq=False)
class Arm:
    """What the loop trains."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    handle: LayerHandle | None = None
    adapter: Any = None  # peft's model, where there is one


@final
@dataclass(frozen=True)
class Order:
    """What an arm is made for."""

    rate: float
    steps: int
    seed: int
    settings: Mapping[str, Setting]
    cache: Cache | None = None
    sink: Sink | None = None


Maker = Callable[[Loaded, Order], Arm]


@final
@dataclass(frozen=True)
class Kind:
    """A maker, the rate it is used at when none is given, and the settings it takes with their defaults."""

    make: Maker
    rate: float
    settings: Mapping[str, Setting]


def optimizer_of(loaded: Loaded, rate: float) -> torch.optim.Optimizer:
    """AdamW without decay over all that may ever train: the pre-trained part, and what is new, at its own rate."""
    inside = {id(p) for p in loaded.base.parameters()}
    old = [p for p in loaded.model.parameters() if id(p) in inside and p.requires_grad]
    new = [p for p in loaded.model.parameters() if id(p) not in inside and p.requires_grad]
    groups = [{"params": old, "lr": rate}, {"params": new, "lr": max(rate, HEAD_RATE)}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)


def _full(loaded: Loaded, order: Order) -> Arm:
    return Arm(loaded.model, optimizer_of(loaded, order.rate))


def _lora(loaded: Loaded, order: Order) -> Arm:
    """LoRA by peft on every linear layer of the blocks; the head trains in full."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError("method lora needs peft: pip install 'realloc[finetune]'") from error
    rank = order.settings["rank"]
    blocks = blocks_of(loaded.base)
    pairs = zip(blocks.names, blocks.modules, strict=True)
    named = [f"{b}.{n}" for b, block in pairs for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    torch.manual_seed(order.seed)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * int(rank), target_modules=named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers; nobody here can mend it
        adapter = peft.get_peft_model(loaded.base, config)
    return Arm(loaded.model, optimizer_of(loaded, order.rate), adapter=adapter)


def _layers(method: Callable[[Order], LayerMethod]) -> Maker:
    def make(loaded: Loaded, order: Order) -> Arm:
        optimizer = optimizer_of(loaded, order.rate)
        chosen = method(order)
        schedule = every(max(1, order.steps // TURNS), total=max(2, order.steps)) if chosen.moves else None
        handle = attach(loaded.model, optimizer, chosen, schedule=schedule, seed=order.seed, record=order.sink)
        return Arm(loaded.model, optimizer, handle)

    return make


def _number(order: Order, name: str) -> Any:
    return order.settings[name]


KINDS: Mapping[str, Kind] = {
    "autofreeze": Kind(
        _layers(lambda o: autofreeze(_number(o, "percentile"), cache=o.cache)), 3e-4, {"percentile": 50.0}
    ),
    "badam": Kind(_layers(lambda o: badam(_number(o, "order"))), 1e-3, {"order": "random"}),
    "full": Kind(_full, 3e-4, {}),
    "layer_gradient": Kind(_layers(lambda o: layer_gradient(_number(o, "share"))), 1e-3, {"share": 0.6}),
    "lisa": Kind(_layers(lambda o: lisa(_number(o, "layers"))), 3e-4, {"layers": 2}),
    "lora": Kind(_lora, 3e-3, {"rank": 8}),
    "random_layers": Kind(_layers(lambda o: random_layers(_number(o, "share"))), 1e-3, {"share": 0.6}),
    "topk": Kind(_layers(lambda o: topk(_number(o, "k"), cache=o.cache)), 1e-3, {"k": 2}),
}
FOCUS: Final = "focus"


def check(name: str, settings: Mapping[str, Setting]) -> Mapping[str, Setting]:
    """The settings of a method, defaults filled in.

    Raises:
        ConfigError: an unknown method or setting, or a value of another kind than the default; the nearest names.
    """
    if name == FOCUS:
        known: Mapping[str, Setting] = {"share": 0.5}
    elif name in KINDS:
        known = KINDS[name].settings
    else:
        raise ConfigError(
            f"method '{plain(name)}' is unknown; fine-tuning has {', '.join(sorted([FOCUS, *KINDS]))}"
            f"{nearest(name, [FOCUS, *KINDS], 1)}"
        )
    for key, value in settings.items():
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no settings"
            raise ConfigError(f"setting '{plain(key)}' is unknown: '{name}' {takes}{nearest(key, known, 1)}")
        wanted = type(known[key])
        fits = isinstance(value, (int, float) if wanted is float else wanted) and isinstance(value, bool) == (
            wanted is bool
        )
        if not fits:
            raise ConfigError(f"setting '{key}' of '{name}' is {plain(str(value))}; give a value like {known[key]}")
    return {**known, **settings}


def within(name: str, settings: Mapping[str, Setting], most: int, loaded: Loaded) -> dict[str, Setting]:
    """Settings with which at most so many parameters train, the head among them.

    Raises:
        ConfigError: a method whose share cannot be set, or a budget below its least.
    """
    blocks = blocks_of(loaded.base)
    inside = {id(p) for p in loaded.base.parameters()}
    left = most - sum(p.numel() for p in loaded.model.parameters() if id(p) not in inside)
    if name == "topk":
        sizes = [sum(p.numel() for p in module.parameters()) for module in blocks.modules]
        k = sum(sum(sizes[-n:]) <= left for n in range(1, len(sizes) + 1))
        least, setting, value = sizes[-1], "k", k
    elif name == "lora":
        shapes = [m.weight.shape for block in blocks.modules for m in block.modules() if isinstance(m, nn.Linear)]
        least, setting = sum(a + b for a, b in shapes), "rank"
        value = left // least
    else:
        raise ConfigError(f"method {name} has no setting for a number of parameters; give seconds, or use lora or topk")
    if value < 1 and left < least:
        raise ConfigError(
            f"a budget of {most:,} parameters is below one {setting} of {name}: {most - left + least:,} with the head"
        )
    return {**settings, setting: int(value)}
