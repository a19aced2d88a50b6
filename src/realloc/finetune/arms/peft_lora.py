"""LoRA by stock peft on every linear layer of the blocks; the head trains in full: the rival. 2106.09685."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

import torch

from realloc.errors import ConfigError
from realloc.finetune.arms.arm import SECONDS, Arm, Order, left_beside_head, optimizer_of
from realloc.finetune.weights import Loaded
from realloc.sites.blocks import blocks_of
from realloc.sites.rank import check_rank
from realloc.sites.turned import is_linear, turned
from realloc.train.config import Setting

RATE: Final = 1e-3  # tuned LoRA's on three of five tasks of benchmarks/finetune.py; at 3e-3 one of them learns nothing


def peft_lora(loaded: Loaded, order: Order) -> Arm:
    """Adapters of one rank everywhere; alpha is twice the rank."""
    library = peft()
    rank = rank_of(order.settings, loaded)
    config = library.LoraConfig(r=rank, lora_alpha=2 * rank, **targets(loaded))
    adapter = wrapped(library, loaded, config, order.seed)
    return Arm(loaded.model, optimizer_of(loaded, order.rate), adapter=adapter)


def rank_within(settings: Mapping[str, Setting], most: int, loaded: Loaded) -> dict[str, Setting]:
    """The largest rank with at most so many parameters.

    Raises:
        ConfigError: fewer than one rank takes.
    """
    least = one_rank(loaded)
    if most < least:
        raise ConfigError(
            f"{left_beside_head(most)}, and one LoRA rank on every linear layer takes "
            f"{least:,}; raise the budget by {least - most:,} or more{SECONDS}"
        )
    return {**settings, "rank": most // least}


def wrapped(library: Any, loaded: Loaded, config: Any, seed: int) -> Any:
    """Put adapters into the base, in place, from the seed."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers; nobody here can mend it
        return library.get_peft_model(loaded.base, config)


def peft() -> Any:
    """The library, or what to install."""
    try:
        import peft as library
    except ImportError as error:
        raise ConfigError("this method needs peft: pip install 'realloc[finetune]'") from error
    return library


def rank_of(settings: Mapping[str, Setting], loaded: Loaded) -> int:
    """A rank that some layer has.

    Raises:
        ConfigError: none has so many.
    """
    rank = int(settings["rank"])
    check_rank(rank, {f"{name}.weight": module.weight.shape for name, module in linear_of(loaded)})
    return rank


def targets(loaded: Loaded) -> dict[str, Any]:
    """Which layers get adapters, in peft's words: every linear layer of the blocks, by its full name."""
    found = linear_of(loaded)
    return {"target_modules": [name for name, _ in found], "fan_in_fan_out": any(turned(m) for _, m in found)}


def one_rank(loaded: Loaded) -> int:
    """Parameters that one rank takes on every layer."""
    return sum(sum(module.weight.shape) for _, module in linear_of(loaded))


def linear_of(loaded: Loaded) -> list[tuple[str, Any]]:
    """The linear layers of the blocks of the base, by name."""
    blocks = blocks_of(loaded.base)
    found = [
        (f"{name}.{inner}", module)
        for name, block in zip(blocks.names, blocks.modules, strict=True)
        for inner, module in block.named_modules()
        if is_linear(module)
    ]
    if not found:
        raise ConfigError(
            f"model '{loaded.name}' has no linear layer in its blocks for LoRA; take --method topk or full"
        )
    return found
