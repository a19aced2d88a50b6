"""Deciding which layers train: what the method is told, and the ledger that its choice must fit. Changes nothing."""

from __future__ import annotations

from typing import final

import torch

from realloc.allocate.layer_costs import CostTable
from realloc.errors import StateError
from realloc.methods.layers import Chosen, LayerMethod, Turn
from realloc.observe.sight import Sight
from realloc.plan import Change, Plan
from realloc.pool.rights import Rights
from realloc.rng import stream
from realloc.schedule import Schedule
from realloc.sites.blocks import Blocks


@final
class LayerLedger:
    """What a choice of layers costs, checked against the method's budget.

    Args:
        blocks: the layers.
        rights: which of them train now, and the cost table that the model's state holds.
        method: sets the budget.
        reads: whether the frozen prefix may be read from a cache, if the method has one.
        embeddings: whether anything below the layers can train.
    """

    def __init__(self, blocks: Blocks, rights: Rights, method: LayerMethod, *, reads: bool, embeddings: bool) -> None:
        self.blocks = blocks
        self.rights = rights
        self.method = method
        self._reads = reads
        self._embeddings = embeddings
        self._flops = CostTable.of_sizes([sum(p.numel() for p in module.parameters()) for module in blocks.modules])

    @property
    def caches(self) -> bool:
        """Whether the layers below the lowest one that trains are read."""
        return self._reads and self.method.cache is not None and self.method.prefix_dropout == "off"

    @property
    def costs(self) -> CostTable:
        """What is charged: the microseconds in the model's buffers, or FLOPs of one token."""
        return self.rights.costs or self._flops

    def cost(self, on: Chosen) -> int:
        """Cost of a step in the blocks, if these layers train."""
        return self.costs.cost(on, below=self.trains_below(on), cached=self.caches)

    @property
    def budget(self) -> int:
        """Cost that the method may use; one that never moves has what it needs."""
        return self.costs.budget(self.method.budget) if self.method.moves else self.cost(self.rights.on)

    def trains_below(self, on: Chosen) -> bool:
        """Whether the embeddings train, if these layers do."""
        rule = self.method.embeddings
        return self._embeddings and (rule == "always" or (rule == "lowest" and 0 in on))

    def check(self, chosen: Chosen) -> None:
        """Refuse a choice that is none, or that the budget does not pay for.

        Raises:
            StateError: numbers that are no layers, unsorted or named twice; or a cost above the budget.
        """
        name = self.method.name
        if list(chosen) != sorted(set(chosen)) or any(not 0 <= layer < len(self.blocks) for layer in chosen):
            raise StateError(
                f"{name} chose the layers {chosen}; they are sorted numbers from 0 to {len(self.blocks) - 1}"
            )
        if self.method.moves and self.cost(chosen) > self.budget:
            raise StateError(
                f"{name} chose the layers {chosen}: {self.cost(chosen):,} {self.costs.unit}, the budget is "
                f"{self.budget:,}"
            )


def decide_layers(ledger: LayerLedger, sight: Sight, schedule: Schedule | None, step: int) -> Plan:
    """Ask the method which layers train from now on.

    Raises:
        StateError: the method chose what the ledger does not pay for.
    """
    rights, method, costs, known = ledger.rights, ledger.method, ledger.costs, sight.plasticity
    number, seed, full = rights.book.read("number"), rights.book.read("seed"), costs.full
    turn = Turn(
        count=len(ledger.blocks), on=rights.on, number=number,
        phase=0.0 if schedule is None else schedule.phase(step),
        draw=lambda n: stream(seed, "layers", method.name, n),
        budget=method.budget,
        cost=lambda layers: costs.cost(layers, below=ledger.trains_below(layers), cached=ledger.caches) / full,
        gradient=sight.gradient, change=sight.change() if number else None,
        plasticity=() if known is None else known.tests, rate=1.0 if known is None else known.rate,
        thaws=0 if known is None else known.thaws,
    )  # fmt: skip
    chosen = method.choose(turn)
    ledger.check(chosen)
    return plan_for(ledger, sight, step, chosen)


def plan_for(ledger: LayerLedger, sight: Sight, step: int, chosen: Chosen) -> Plan:
    """The plan that leads from the layers that train now to the chosen ones."""
    on, gradient = ledger.rights.on, sight.gradient
    released = torch.tensor([layer for layer in on if layer not in chosen], dtype=torch.int64)
    acquired = torch.tensor([layer for layer in chosen if layer not in on], dtype=torch.int64)
    gain = sum(gradient[layer] for layer in acquired.tolist()) if gradient else 0.0
    change = Change(ledger.blocks.name, len(on), len(chosen), released, acquired, predicted_gain=gain)
    return Plan(step, (change,))


def after(before: Chosen, plan: Plan) -> Chosen:
    """The layers that train once a plan is made."""
    gone = {layer for change in plan.changes for layer in change.released.tolist()}
    come = [layer for change in plan.changes for layer in change.acquired.tolist()]
    return tuple(sorted([*(layer for layer in before if layer not in gone), *come]))
