"""focus within a budget of parameters: the budget is a ceiling, and never changes what focus decided to more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

import realloc.finetune.arms.table as arms
from realloc.finetune.arms.layers import tops
from realloc.finetune.arms.peft_lora import one_rank
from realloc.finetune.arms.ranks import TOP, check_least
from realloc.finetune.focus import Choice
from realloc.finetune.weights import Loaded
from realloc.train.config import Setting

RANK: Final = 8  # of uniform LoRA, where no layer can be frozen


@final
@dataclass(frozen=True)
class Spent:
    """What trains and for how long. ``deeper``: whether the budget, if there is one, pays for a layer more."""

    method: str
    settings: Mapping[str, Setting]
    epochs: float
    rate: float
    why: str
    deeper: bool = True


def check_affordable(most: int, loaded: Loaded) -> None:
    """Before anything is measured: refuse a budget that pays for nothing that focus could choose.

    Raises:
        ConfigError: less than the head and the cheapest rank take.
    """
    check_least(most - arms.head_size(loaded.model, loaded.base), loaded)


def under(choice: Choice, most: int | None, epochs: float, loaded: Loaded, *, timed: bool = False) -> Spent:
    """Spend at most a budget on what focus chose: its layers, the highest of them, or LoRA ranks on all of them.

    Args:
        choice: what focus decided.
        most: parameters that may train, the head among them; None: no bound.
        epochs: that were asked for. Ranks train for so many: read from no cache, they cannot pay for more.
        loaded: the model, with all its layers.
        timed: whether seconds end the run, whatever the epochs.
    """
    if choice.k is None:
        return _uniform(choice, most, loaded)
    left = math.inf if most is None else most - arms.head_size(loaded.model, loaded.base)
    fits = sum(size <= left for size in tops(loaded, choice.kept))
    k = min(choice.k, fits)
    if k:
        less = "" if k == choice.k else f"; the budget pays for {_layers(k)} of these {choice.k}, the highest"
        rate = choice.rate * math.sqrt(choice.k / k)  # what k layers change adds up as the root of k
        why = choice.why + _for(choice.epochs, timed=timed) + less
        return Spent("topk", {"k": k}, choice.epochs, rate, why, fits > choice.k)
    assert most is not None
    settings = arms.within("lora", {TOP: choice.k}, most, loaded)
    why = (
        f"{choice.why}; but the budget pays for no whole layer: LoRA ranks on {_layers(choice.k)} train "
        f"instead{_for(epochs, timed=timed)}, and the frozen layers are computed anew at each step"
    )
    return Spent("lora", settings, epochs, 1.0, why, deeper=False)


def _uniform(choice: Choice, most: int | None, loaded: Loaded) -> Spent:
    head = arms.head_size(loaded.model, loaded.base)
    settings: Mapping[str, Setting] = {"rank": RANK}
    why = choice.why
    if most is not None and head + RANK * one_rank(loaded) > most:
        settings = arms.within("lora", settings, most, loaded)
        why += f"; the budget pays for less than LoRA of rank {RANK}"
    return Spent("lora", settings, choice.epochs, choice.rate, why)


def _for(epochs: float, *, timed: bool) -> str:
    return "" if timed else f" for {epochs:.2g} epochs"


def _layers(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)}"
