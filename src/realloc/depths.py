"""Which layers of a pre-trained model the task needs: one pass over some examples, and a probe of each depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from realloc.allocate.prefix import Depths, depths_of
from realloc.cache.known import Known
from realloc.errors import ConfigError, plain
from realloc.modes import as_it_was
from realloc.observe.probes import leave_one_out, one_hot
from realloc.sites.blocks import blocks_of


def probe_depths(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], targets: Tensor, *, compute: str = "float32"
) -> Depths:
    """Say how many layers can be frozen, before anything trains.

    The mean over the tokens of each layer's output is a representation of the text. A linear model is fitted to it,
    and judged by its leave-one-out error. Where the error stops falling with depth, the layers below have done what
    they can for this task, and training may start above. Where no depth beats the embeddings, the layers were trained
    for something else, and all of them must train. (Probing by depth: Alain and Bengio 2016, 1610.01644; the rule that
    turns it into a number of frozen layers is ours.)

    Args:
        model: of transformers, with a base model that takes ``input_ids`` and ``attention_mask``; left as it was.
        batches: of some hundred examples, each with ``input_ids`` ``[b, t]`` and ``attention_mask`` ``[b, t]``.
        targets: of the examples in the same order: classes int ``[n]``, or numbers float ``[n]``.
        compute: "float32" or "bfloat16".

    Returns:
        The table; print it. ``frozen`` is the number of layers to freeze, so ``methods.topk(layers - frozen)``.

    Raises:
        ConfigError: no such base model, no batch, or targets of another number.
    """
    return compare_depths(pooled_depths(model, batches, compute=compute), targets)


def pooled_depths(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    compute: str = "float32",
    known: Known | None = None,
) -> Tensor:
    """What the probes are fitted to: float ``[n, depths, width]``, each layer's mean over the tokens of a text.

    ``known`` takes what was computed, for the cache of a training that follows.

    Raises:
        ConfigError: as `probe_depths` does; no batch gives no text.
    """
    blocks = blocks_of(model)
    base = blocks.base
    if base is None or isinstance(base, nn.Sequential):
        raise ConfigError(f"{plain(blocks.name)!r} is in no model of transformers; depths are probed in those")
    if compute not in ("float32", "bfloat16"):
        raise ConfigError(f"compute is {compute!r}; use 'float32' or 'bfloat16'")
    with as_it_was(base):
        base.eval()
        pooled = [_pooled(base, batch, known, low=compute == "bfloat16") for batch in batches]
    return torch.cat(pooled) if pooled else torch.zeros(0, len(blocks) + 1, 1)


def compare_depths(features: Tensor, targets: Tensor) -> Depths:
    """Fit a probe to each depth of ``[n, depths, width]`` and compare their leave-one-out errors.

    Raises:
        ConfigError: no example, or targets of another number.
    """
    if len(features) != len(targets) or not len(features):
        raise ConfigError(f"{len(features)} examples came in the batches, and there are {len(targets)} targets")
    wanted = targets.float()[:, None] if targets.is_floating_point() else one_hot(targets)
    return depths_of([leave_one_out(features[:, depth], wanted) for depth in range(features.shape[1])])


@torch.no_grad()
def _pooled(base: nn.Module, batch: Mapping[str, Tensor], known: Known | None, *, low: bool) -> Tensor:
    """``[b, depths, width]``: the mean over the tokens of what enters the lowest layer, and of what leaves each."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    context: Any = torch.autocast(ids.device.type, torch.bfloat16) if low else nullcontext()
    with context:
        found = base(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    if known is not None:
        known.add(batch, found)
    weight = (mask / mask.sum(1, keepdim=True).clamp(min=1)).float()
    return torch.stack([torch.einsum("bt,btd->bd", weight, one.float()) for one in found], 1)
