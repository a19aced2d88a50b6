"""Choosing ranks, or the places of deltas, before training, from a few batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final, overload

import torch
from torch import Tensor, nn

import realloc.prepare_deltas as prepare_deltas
from realloc.choose_linear import Layer, choose_layers
from realloc.errors import ConfigError, StateError
from realloc.kernels.finite import all_finite
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.rank_method import RankMethod
from realloc.modes import as_it_was
from realloc.observe.rank_probe import Probed
from realloc.pool.found import find
from realloc.prepare_ranks import budget_of, seats_of
from realloc.select.streaming import best_across
from realloc.sites.listening import listening
from realloc.sites.turned import upright

Loss = Callable[[nn.Module, Any], Tensor]


@overload
def calibrate(
    model: nn.Module, batches: Iterable[Any], method: RankMethod, *, loss: Loss | None = None, seed: int = 0
) -> RankMethod: ...


@overload
def calibrate(
    model: nn.Module, batches: Iterable[Any], method: DeltaMethod, *, loss: Loss | None = None, seed: int = 0
) -> DeltaMethod: ...


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    method: RankMethod | DeltaMethod,
    *,
    loss: Loss | None = None,
    seed: int = 0,
) -> RankMethod | DeltaMethod:
    """Measure a few batches and fill in the ranks, or the places, of a method that chooses them before training.

    The model computes as in evaluation, without dropout; nothing of it changes. In a run of several processes give each
    the same batches.

    Args:
        model: not yet prepared.
        batches: a few, such as five; each a dict of what the model takes, with labels, unless ``loss`` knows better.
        method: such as `methods.eva(rank=8)` or `methods.spiel(budget=300_000, begin="gradient")`.
        loss: ``(model, batch) -> loss``; by default ``model(**batch).loss``.
        seed: of the rows of A, where a method draws them here, since B depends on them (`methods.gora`).

    Returns:
        The same method with its ranks or places, for `prepare` and `attach`.

    Raises:
        ConfigError: a method that needs no batches, no batch, or a loss that is no finite number.
        StateError: the model is prepared already.

    Example:
        >>> import torch, realloc
        >>> from realloc import methods
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> batches = [torch.randn(8, 4, generator=torch.Generator().manual_seed(0))]
        >>> method = realloc.calibrate(model, batches, methods.eva(rank=2), loss=lambda m, x: m(x).square().mean())
        >>> sum(rank for _, rank in method.ranks), realloc.prepare(model, method).budget
        (4, 32)
    """
    if not isinstance(model, nn.Module) or not isinstance(method, RankMethod | DeltaMethod) or not method.measures:
        raise ConfigError(
            f"calibrate got {type(model).__name__} and {getattr(method, 'name', method)!r}; give a model and a method "
            "that measures before training, such as methods.eva(rank=8)"
        )
    if find(model) is not None:
        raise StateError("this model is prepared already; calibrate before prepare()")
    ask = loss if loss is not None else _own_loss
    if isinstance(method, DeltaMethod):
        return _with_places(model, batches, method, ask)
    return _with_ranks(model, batches, method, ask, seed)


def _with_ranks(model: nn.Module, batches: Iterable[Any], method: RankMethod, ask: Loss, seed: int) -> RankMethod:
    layers = choose_layers(model, method.where).layers
    if any(layer.adopted for layer in layers):
        raise ConfigError(f"a peft model has its ranks already; {method.name} chooses them for a plain one")
    probe = method.probe
    assert probe is not None
    with as_it_was(model):
        model.eval()
        measured = _inputs(model, layers, batches, ask) if probe.needs == "input" else _gradients(
            model, layers, batches, ask
        )  # fmt: skip
    seats = seats_of(method, layers)
    probed = [
        Probed(s.name, s.shape, s.cap, layer.weight.detach(), **{_FIELDS[probe.needs]: found})
        for s, layer, found in zip(seats, layers, measured, strict=True)
    ]
    budget = budget_of(method, seats)
    allotted = probe.choose(probed, budget, seed)
    ranks = tuple((s.name.removesuffix(".weight"), n) for s, n in zip(seats, allotted.ranks, strict=True))
    return replace(
        method, rank=None, budget=budget, ranks=ranks, rows=allotted.rows, rows_b=allotted.rows_b, probe=None
    )


def _with_places(model: nn.Module, batches: Iterable[Any], method: DeltaMethod, ask: Loss) -> DeltaMethod:
    """The places of largest |mean gradient| over all layers together."""
    layers = choose_layers(model, method.where, "deltas").layers
    grids = prepare_deltas.grids_of(layers)
    budget = prepare_deltas.budget_of(method, grids)
    with as_it_was(model):
        model.eval()
        found = _gradients(model, layers, batches, ask)
    offers = (
        (number, gradient.abs().flatten(), torch.arange(gradient.numel()))
        for number, gradient in enumerate(found)
        if gradient is not None
    )
    best = best_across([grid.units for grid in grids], offers, budget)
    held = sum(len(mine.indices) for mine in best)
    if held < budget:
        raise ConfigError(f"the loss of these batches depends on {held:,} weights, fewer than the budget of {budget:,}")
    return replace(method, places={layer.name: mine.indices for layer, mine in zip(layers, best, strict=True)})


_FIELDS = {"input": "spread", "gradient": "gradient"}


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        raise ConfigError(f"a batch is a {type(batch).__name__}, no dict; say loss=lambda model, batch: ...")
    found = getattr(model(**batch), "loss", None)
    if not isinstance(found, Tensor):
        raise ConfigError("the model gives no loss for these batches; put labels into them, or say loss=...")
    return found


def _losses(model: nn.Module, batches: Iterable[Any], loss: Loss) -> Iterator[tuple[Any, Tensor]]:
    count = 0
    for batch in batches:
        found = loss(model, batch)
        if not isinstance(found, Tensor) or found.numel() != 1 or not all_finite(found.detach()):
            raise ConfigError(f"the loss of batch {count} is {found!r}; it must be one finite number")
        count += 1
        yield batch, found
    if not count:
        raise ConfigError("there is no batch to calibrate on; give a few, such as five")


def _gradients(model: nn.Module, layers: Sequence[Layer], batches: Iterable[Any], loss: Loss) -> list[Tensor | None]:
    """Mean gradient of each layer's weight; None where the loss does not depend on it."""
    weights = [layer.parameter for layer in layers]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    sums: list[Tensor | None] = [None] * len(weights)
    count = 0
    for _, found in _losses(model, batches, loss):
        for i, gradient in enumerate(torch.autograd.grad(found, weights, allow_unused=True)):
            known = sums[i]
            if gradient is not None:
                sums[i] = gradient.float() if known is None else known + gradient
        count += 1
    return [
        None if total is None else upright(layer.module, total) / count
        for layer, total in zip(layers, sums, strict=True)
    ]


@final
class _Spread:
    """Sums over the rows of one input."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.first = torch.zeros(width, dtype=torch.float64)
        self.second = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        rows = rows.detach().double().cpu()
        self.count += len(rows)
        self.first = self.first + rows.sum(0)
        self.second = self.second + rows.t() @ rows

    def covariance(self) -> Tensor:
        mean = self.first / self.count
        return self.second / self.count - torch.outer(mean, mean)


def _inputs(model: nn.Module, layers: Sequence[Layer], batches: Iterable[Any], loss: Loss) -> list[Tensor | None]:
    """Covariance ``[in, in]`` of each layer's input, without padding; layers with one input share one."""
    spreads: dict[str, _Spread] = {}
    last: tuple[Tensor, _Spread] | None = None
    mask: Tensor | None = None

    def hear(name: str, x: Tensor) -> None:
        nonlocal last
        # query, key and value see the same tensor, one after the other
        if last is not None and x is last[0] and spreads.setdefault(name, last[1]) is last[1]:
            return
        spread = spreads.setdefault(name, _Spread(x.shape[-1]))
        inside = mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape
        spread.add(x[mask.bool()] if inside and mask is not None else x.reshape(-1, x.shape[-1]))
        last = x, spread

    def measured(model: nn.Module, batch: Any) -> Tensor:
        nonlocal last, mask
        found = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        mask, last = found if isinstance(found, Tensor) else None, None
        return loss(model, batch)

    with torch.no_grad(), listening({layer.name: layer.module for layer in layers}, hear):
        for _ in _losses(model, batches, measured):
            pass
    if not any(spread.count for spread in spreads.values()):
        raise ConfigError("no layer that may hold ranks was called in these batches")
    return [spreads[layer.name].covariance() if layer.name in spreads else None for layer in layers]
