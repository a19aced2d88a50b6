"""AdaLoRA by stock peft: ranks are cut where they matter least; the rival. Source: Zhang et al. 2023, 2303.10512.

As peft has it: what is cut is set to zero and goes on taking memory and time. peft leaves two calls to the user's loop,
the regulariser and ``update_and_allocate``; the arm makes them, and a checkpoint holds peft's running means.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.finetune.arms.arm import Arm, Order, optimizer_of
from realloc.finetune.arms.peft_lora import peft, rank_of, rank_within, targets, wrapped
from realloc.finetune.weights import Loaded
from realloc.train.config import Setting

REGULAR: Final = 0.5  # weight of the orthogonality of the bases, peft's default
WARM, LAST = 0.1, 0.3  # shares of the run before the first cut, and after the last
CUTS: Final = 50  # about so many in between
_CUT = "rank_pattern"  # which ranks stay, from the last cut on; peft keeps it in its config
_MEANS = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def peft_adalora(loaded: Loaded, order: Order) -> Arm:
    """Start at half as many ranks again as are kept on average."""
    library = peft()
    rank = rank_of(order.settings, loaded)
    steps = max(3, order.steps)
    config = library.AdaLoraConfig(
        init_r=max(rank + 1, rank * 3 // 2), target_r=rank, lora_alpha=2 * rank, orth_reg_weight=REGULAR,
        tinit=int(WARM * steps), tfinal=int(LAST * steps), total_step=steps,
        deltaT=max(1, int((1 - WARM - LAST) * steps / CUTS)), **targets(loaded),
    )  # fmt: skip
    adapter: Any = wrapped(library, loaded, config, order.seed)
    allocator = adapter.base_model.rankallocator

    def moved(step: int) -> None:
        adapter.base_model.update_and_allocate(step)  # beyond its last cut it only masks

    return Arm(
        loaded.model, optimizer_of(loaded, order.rate), adapter=adapter, moved=moved,
        revised=partial(_revise, allocator),
        penalty=lambda: _orthogonal(loaded.base), parts={"allocator": _Means(allocator)},
    )  # fmt: skip


def peft_adalora_within(settings: Mapping[str, Setting], most: int, loaded: Loaded) -> dict[str, Setting]:
    """The largest rank kept whose start, half as much again, fits: peft never gives a parameter back."""
    start = int(rank_within({}, most, loaded)["rank"])
    fits = [rank for rank in range(1, start + 1) if max(rank + 1, rank * 3 // 2) <= start]
    return {**settings, "rank": max(fits)} if fits else rank_within(settings, most // 2, loaded)


def _orthogonal(base: nn.Module) -> Tensor:
    """How far the bases of each layer are from orthogonal: mean of ``||P'P - I||`` and ``||QQ' - I||`` over them."""
    found = []
    for name, parameter in base.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            square = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
            found.append(torch.linalg.norm(square - torch.eye(len(square))))
    return REGULAR * torch.stack(found).mean()


def _revise(allocator: Any, step: int, total: int) -> None:
    """Put the last cut where a run of another length has it, after this step in any case; one that was made stays."""
    config = allocator.peft_config
    if step < config.total_step - config.tfinal:
        config.total_step = total
        config.tfinal = min(int(LAST * total), total - step - 1)
        config.tinit = min(config.tinit, total - config.tfinal - 1)


@final
class _Means:
    """peft's running means and last cut as something a checkpoint can hold; peft itself forgets them."""

    def __init__(self, allocator: Any) -> None:
        self._allocator = allocator

    def state_dict(self) -> dict[str, Any]:
        """The means by name of the adapter's weight."""
        means = {name: dict(getattr(self._allocator, name)) for name in _MEANS}
        return {**means, _CUT: self._allocator.peft_config.rank_pattern}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take them back."""
        for name in _MEANS:
            setattr(self._allocator, name, dict(state_dict[name]))
        self._allocator.peft_config.rank_pattern = state_dict[_CUT]
