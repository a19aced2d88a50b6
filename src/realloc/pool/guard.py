"""What the optimizer must not touch in a step, put back after it; and the damping of young slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from realloc.pool.flat import FlatPool
from realloc.pool.holdings import Flat
from realloc.pool.masked import MaskedPool
from realloc.pool.state import restore, snapshot

Fresh = dict[str, float]
Group = dict[str, Any]


@final
class Guard:
    """Between gradients and update: remembers, then restores.

    A site that took part in no backward of the step keeps its values and state, as plain torch skips a parameter
    whose gradient is None. (A split pool shows such a segment as zeros, and AdamW would decay and move it.)
    """

    def __init__(self, young: int) -> None:
        self._young = young
        self.holds = False  # whether there is anything to put back or to damp
        self._kept: list[tuple[Flat, int, dict[str, Any]]] = []
        self._before: list[tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]] = []

    def before(self, flats: Sequence[Flat], updated: Mapping[str, bool], optimizer: torch.optim.Optimizer) -> None:
        """Remember the segments without a gradient. ``updated``: by site, whether it has one."""
        for pool in flats:
            for site in pool.sites:
                if not updated[site.name] and pool.parameter.grad is not None:
                    first, last = (b * pool.unit_size for b in pool.bounds(site.index))
                    self._kept.append((pool, first, snapshot(optimizer, pool.parameter, first, last)))
                    self.holds = True

    def forget(self) -> None:
        """Put nothing back."""
        self._kept, self._before, self.holds = [], [], False

    def after(self, optimizer: torch.optim.Optimizer, fresh: Mapping[torch.nn.Parameter, Fresh]) -> None:
        """Put them back, and damp the young."""
        if self._kept:
            with torch.no_grad():
                for pool, first, kept in self._kept:
                    restore(optimizer, pool.parameter, first, kept, fresh[pool.parameter])
        if self._before:
            self._damp()
        self.forget()

    def before_young(
        self, flats: Sequence[Flat], masked: MaskedPool | None, step: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Remember the values of units that are still young. ``step``: the step being taken."""
        if not self._young:
            return
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for pool in flats:
            if isinstance(pool, FlatPool) and pool.born is not None:
                inside = torch.arange(pool.unit_size, device=pool.born.device)
                units, age = self._still_young(pool.born[: pool.held], step, groups[id(pool.parameter)])
                slots = units[:, None] * pool.unit_size + inside
                self._remember(pool.parameter.detach().view(-1), slots, age, groups[id(pool.parameter)])
        for site in masked.sites if masked is not None else ():
            born = site.pool.born(site.index)
            if born is not None:
                units, age = self._still_young(born, step, groups[id(site.parameter)])
                elements = site.grid.elements(units)
                self._remember(site.parameter.detach(), elements, age, groups[id(site.parameter)])

    def _still_young(self, born: Tensor, step: int, group: Group) -> tuple[Tensor, Tensor]:
        age = step - born.long()
        units = ((born > 0) & (age <= young_window(self._young, group))).nonzero().flatten()
        return units, age[units]

    def _remember(self, values: Tensor, index: Tensor, age: Tensor, group: Group) -> None:
        if index.numel():
            factor = young_factor(age[:, None].to(values), self._young, group)
            at = torch.unravel_index(index, values.shape)  # a channels-last weight has no flat view
            self._before.append((values, at, values[at], factor))
            self.holds = True

    @torch.no_grad()
    def _damp(self) -> None:
        """Scale the update that young slots just got by `young_factor` of their age."""
        for values, at, old, factor in self._before:
            values[at] = old + factor * (values[at] - old)


def young_window(ramp: int, group: dict[str, Any]) -> int:
    """Steps for which a slot counts as young: the ramp, or the memory of Adam's second moment if that is longer.

    >>> young_window(10, {"betas": (0.9, 0.999)}), young_window(10, {})
    (1000, 10)
    """
    betas = group.get("betas")
    return ramp if betas is None else max(ramp, round(1 / max(1e-6, 1 - float(betas[1]))))


def young_factor(age: Tensor, window: int, group: dict[str, Any]) -> Tensor:
    r"""Factor on the update of a slot that is ``age`` steps old (the first update has age 1).

    .. math:: f(a) = \min(a / W, 1) \cdot \sqrt{1 - \beta_2^a} / (1 - \beta_1^a)

    The second part is Adam's own bias correction (1412.6980, algorithm 1) with the slot's age in place of the
    step count: what an optimizer with one count per slot would apply. Without betas it is 1. It matters longer than
    the first step: under a steady gradient the uncorrected update peaks at age 12 with 6.6 lr (betas 0.9, 0.999), so
    it is applied for ``1 / (1 - beta2)`` steps. The ramp over W steps is SMET's warm-up (2606.00888).
    """
    ramp = (age / window).clamp(max=1.0)
    betas = group.get("betas")
    if betas is None:
        return ramp
    first, second = (float(b) for b in betas)
    return ramp * (1 - second**age).sqrt() / (1 - first**age)
