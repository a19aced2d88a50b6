"""The ways to spend a fine-tuning budget, by name. A new one costs its maker and one line in the table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import nn

from realloc.attach import attach, prepare
from realloc.cache.settings import Cache
from realloc.errors import ConfigError, nearest, plain
from realloc.finetune.weights import Loaded
from realloc.handle import Handle
from realloc.layer_handle import LayerHandle
from realloc.methods.adalora import adalora
from realloc.methods.autofreeze import autofreeze
from realloc.methods.badam import badam
from realloc.methods.layer_gradient import layer_gradient
from realloc.methods.layers import LayerMethod
from realloc.methods.lisa import lisa
from realloc.methods.lora import lora
from realloc.methods.para import para
from realloc.methods.random_layers import random_layers
from realloc.methods.random_ranks import random_ranks
from realloc.methods.rank_gradient import rank_gradient
from realloc.methods.rank_method import RankMethod
from realloc.methods.topk import topk
from realloc.record.sink import Sink
from realloc.schedule import every
from realloc.sites.blocks import blocks_of
from realloc.train.config import Setting

HEAD_RATE: Final = 1e-3  # the least a new head trains at
TURNS: Final = 20  # choices of layers in a run
MOVES: Final = 20  # moves of ranks
SETTLE: Final = 0.6  # share of the run after which ranks stay
SCALE: Final = 2.0  # alpha / r, as in peft's examples


@final
@dataclass(frozen=True, eq=False)
class Arm:
    """What the loop trains."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    handle: Handle | LayerHandle | None = None
    adapter: Any = None  # peft's model, where there is one

    @property
    def update(self) -> Callable[[int], None] | None:
        """What peft's AdaLoRA wants to be called after each step: without it, it is plain LoRA."""
        base = getattr(self.adapter, "base_model", None)
        found: Callable[[int], None] | None = getattr(base, "update_and_allocate", None)
        return found


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
    inside |= {id(p) for name, p in loaded.model.named_parameters() if name.startswith("realloc")}  # a pool of ranks
    old = [p for p in loaded.model.parameters() if id(p) in inside and p.requires_grad]
    new = [p for p in loaded.model.parameters() if id(p) not in inside and p.requires_grad]
    groups = [{"params": old, "lr": rate}, {"params": new, "lr": max(rate, HEAD_RATE)}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)


def _full(loaded: Loaded, order: Order) -> Arm:
    return Arm(loaded.model, optimizer_of(loaded, order.rate))


def _with_peft(config_of: Callable[[Any, Order, list[str]], Any]) -> Maker:
    """An adapter by stock peft on every linear layer of the blocks; the head trains in full. The rival."""

    def make(loaded: Loaded, order: Order) -> Arm:
        try:
            import peft
        except ImportError as error:
            raise ConfigError("this method needs peft: pip install 'realloc[finetune]'") from error
        blocks = blocks_of(loaded.base)
        pairs = zip(blocks.names, blocks.modules, strict=True)
        named = [f"{b}.{n}" for b, block in pairs for n, m in block.named_modules() if isinstance(m, nn.Linear)]
        torch.manual_seed(order.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers; nobody here can mend it
            adapter = peft.get_peft_model(loaded.base, config_of(peft, order, named))
        return Arm(loaded.model, optimizer_of(loaded, order.rate), adapter=adapter)

    return make


@_with_peft
def _peft_lora(peft: Any, order: Order, named: list[str]) -> Any:
    rank = int(order.settings["rank"])
    return peft.LoraConfig(r=rank, lora_alpha=int(SCALE * rank), target_modules=named)


@_with_peft
def _peft_adalora(peft: Any, order: Order, named: list[str]) -> Any:
    rank, steps = int(order.settings["rank"]), order.steps
    return peft.AdaLoraConfig(
        init_r=rank * 3 // 2, target_r=rank, lora_alpha=int(SCALE * rank * 3 // 2), target_modules=named,
        total_step=steps, tinit=steps // 10, tfinal=steps * 2 // 5, deltaT=max(1, steps // 100),
    )  # fmt: skip


def _ranks(make_method: Callable[[Order], RankMethod]) -> Maker:
    """Our own ranks: in one pool, with a budget of parameters, on every linear layer of the blocks."""

    def make(loaded: Loaded, order: Order) -> Arm:
        blocks = blocks_of(loaded.model)
        patterns = [name + ".*" for name in blocks.names]
        method = make_method(order).on(*patterns)
        prepare(loaded.model, method, seed=order.seed)
        optimizer = optimizer_of(loaded, order.rate)
        schedule = every(max(1, order.steps // MOVES), until=SETTLE, total=max(2, order.steps))
        handle = attach(loaded.model, optimizer, method, schedule=schedule, seed=order.seed, record=order.sink)
        return Arm(loaded.model, optimizer, handle)

    return make


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
    "adalora": Kind(_ranks(lambda o: adalora(_number(o, "rank"), scale=SCALE)), 3e-3, {"rank": 8}),
    "autofreeze": Kind(
        _layers(lambda o: autofreeze(_number(o, "percentile"), cache=o.cache)), 3e-4, {"percentile": 50.0}
    ),
    "badam": Kind(_layers(lambda o: badam(_number(o, "order"))), 1e-3, {"order": "random"}),
    "full": Kind(_full, 3e-4, {}),
    "layer_gradient": Kind(_layers(lambda o: layer_gradient(_number(o, "share"))), 1e-3, {"share": 0.6}),
    "lisa": Kind(_layers(lambda o: lisa(_number(o, "layers"))), 3e-4, {"layers": 2}),
    "lora": Kind(_ranks(lambda o: lora(_number(o, "rank"), scale=SCALE)), 3e-3, {"rank": 8}),
    "para": Kind(_ranks(lambda o: para(_number(o, "rank"), scale=SCALE)), 3e-3, {"rank": 8}),
    "peft_adalora": Kind(_peft_adalora, 3e-3, {"rank": 8}),
    "peft_lora": Kind(_peft_lora, 3e-3, {"rank": 8}),
    "rank_gradient": Kind(_ranks(lambda o: rank_gradient(_number(o, "rank"), scale=SCALE)), 3e-3, {"rank": 8}),
    "random_ranks": Kind(_ranks(lambda o: random_ranks(_number(o, "rank"), scale=SCALE)), 3e-3, {"rank": 8}),
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
    elif "rank" in settings:
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
