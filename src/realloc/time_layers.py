"""The cost table of a model's layers: timed once on a batch, in whole microseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import Tensor, nn

from realloc.allocate.layer_costs import CostTable
from realloc.errors import ConfigError, StateError, plain
from realloc.modes import as_it_was
from realloc.observe.entering import Entering
from realloc.pool.found import root_of
from realloc.pool.rights import KEY
from realloc.sites.blocks import Blocks, blocks_of

REPEATS: Final = 5
_NORMS: Final = nn.modules.batchnorm._BatchNorm


def cost_table(model: nn.Module, batch: object, *, repeats: int = REPEATS) -> CostTable:
    """Time the layers of a model, each alone on what enters it: forward, gradient of its input, and of its weights.

    Hand the table to a method, ``methods.layer_gradient(0.5).costing(table)``; the ledger then charges the table, and
    never looks at the clock again. It is in the model's state and in the record, so a resume goes on with the same
    numbers on any machine, and other ranks take rank 0's.

    Args:
        model: with layers as `realloc.methods.topk` takes them, not attached yet; left as it was. Under DDP or not.
        batch: as the model is called in training, with as many rows and tokens: a mapping of keywords, a tensor, or a
            tuple of arguments.
        repeats: the fastest of so many counts.

    Returns:
        Whole microseconds, at least 1 each; print it.

    Raises:
        ConfigError: no layers, a batch of another kind, a layer that this batch does not reach, or no repeats.
        StateError: attached already.

    >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> table = cost_table(net, torch.ones(4, 8))
    >>> len(table), table.unit, min(table.forward + table.inputs + table.weights) >= 1
    (2, 'microseconds a step', True)
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ConfigError(f"repeats is {repeats!r}; it is a number of runs, 1 or more")
    root = root_of(model)
    if KEY in root._buffers:
        raise StateError("this model is attached already; make the cost table before attach(), or detach() first")
    blocks = blocks_of(root)
    with as_it_was(root), _same_random_numbers(root), torch.enable_grad():
        root.train()
        for module in root.modules():
            if isinstance(module, _NORMS):  # would go on counting
                module.eval()
        rows = _fastest(blocks, _entering(root, blocks, batch), repeats)
    forward, inputs, weights = (tuple(max(1, round(1e6 * row[part])) for row in rows) for part in range(3))
    return CostTable(forward, inputs, weights)


def _entering(root: nn.Module, blocks: Blocks, batch: object) -> Sequence[Entering]:
    """What enters each layer when the model is called with a batch."""
    found: dict[int, Entering] = {}

    def keep(layer: int) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[layer] = Entering.of(args, kwargs)

        return see

    hooks = [m.register_forward_pre_hook(keep(i), with_kwargs=True) for i, m in enumerate(blocks.modules)]
    try:
        with torch.no_grad():
            _call(root, batch)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, name in enumerate(blocks.names):
        if layer not in found:
            raise ConfigError(f"layer {plain(name)!r} is not run on this batch; give one as the model is trained with")
    return [found[layer] for layer in range(len(blocks))]


def _call(root: nn.Module, batch: object) -> None:
    if isinstance(batch, Mapping):
        root(**batch)
    elif isinstance(batch, tuple):
        root(*batch)
    elif torch.is_tensor(batch):
        root(batch)
    else:
        raise ConfigError(
            f"the batch is a {type(batch).__name__}; give a mapping of the model's keywords, a tensor, or a tuple"
        )


def _fastest(blocks: Blocks, entering: Sequence[Entering], repeats: int) -> list[tuple[float, float, float]]:
    """Of each layer, the least seconds that each part took.

    Round after round over all layers: what slows the machine for a while slows none of them alone.
    """
    weights = [[p for p in layer.parameters() if p.requires_grad] for layer in blocks.modules]  # not what was frozen
    rounds = [
        [_timed(layer, one, mine) for layer, one, mine in zip(blocks.modules, entering, weights, strict=True)]
        for _ in range(repeats)
    ]
    least = [[min(parts) for parts in zip(*layer, strict=True)] for layer in zip(*rounds, strict=True)]
    return [(forward, inputs, max(0.0, both - inputs)) for forward, inputs, both in least]


def _timed(layer: nn.Module, entering: Entering, weights: Sequence[nn.Parameter]) -> tuple[float, float, float]:
    """Seconds of the forward, of the gradient of the input alone, and of that with the gradient of the weights."""
    forwards, backwards = [], []
    for trains in (False, True):
        for parameter in weights:
            parameter.requires_grad_(trains)
        leaf = entering.hidden.clone().requires_grad_()
        one = entering.on(leaf * 1.0)  # a layer may write into its input, not into a leaf
        began = _now(leaf)
        output = one.run(layer)
        middle = _now(leaf)
        wanted = [leaf, *(weights if trains else [])]
        torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)
        forwards.append(middle - began)
        backwards.append(_now(leaf) - middle)
    return min(forwards), backwards[0], backwards[1]


def _now(like: Tensor) -> float:
    if like.device.type != "cpu":
        torch.accelerator.synchronize(like.device)
    return time.perf_counter()


def _same_random_numbers(root: nn.Module) -> AbstractContextManager[Any]:
    """Dropout is timed too, and the user's random numbers go on as if nothing had been drawn."""
    device = next(root.parameters()).device
    return torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=_fork_type(device))


def _fork_type(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
