"""From a plan to the line that records it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from realloc.allocate.layer_costs import CostTable
from realloc.plan import Plan

VERSION = 1


class Sink(Protocol):
    """Anything that takes one event for each decision."""

    def decision(self, event: dict[str, Any]) -> None:
        """Record one decision."""


def event_of(plan: Plan, before: Mapping[str, int], seconds: float, budget: int, held: int) -> dict[str, Any]:
    """One line of ``events.jsonl``: what a decision did to each site, in units, and to the budget, in weights.

    Its kind: ``move``, ``stay`` where nothing was worth moving, ``skip`` where nothing might move (see ``reason``).
    """
    changes = {c.site: c for c in plan.changes}
    sites: dict[str, dict[str, Any]] = {}
    for name, count in before.items():
        change = changes.get(name)
        sites[name] = {
            "before": count,
            "after": count if change is None else change.after,
            "released": 0 if change is None else change.released.numel(),
            "acquired": 0 if change is None else change.acquired.numel(),
            "keep_threshold": None if change is None else change.keep_threshold,
            "want_threshold": None if change is None else change.want_threshold,
        }
        if change is not None and change.jump is not None:
            sites[name]["jump"] = change.jump
    noted = {"note": plan.note} if plan.note else {}
    return {
        "v": VERSION,
        "kind": "skip" if plan.skipped else "move" if plan.moves_anything else "stay",
        "step": plan.step,
        "seconds": seconds,
        "reason": plan.skipped,
        "sites": sites,
        "budget": budget,
        "held": held,
        "parked": budget - held,
        "predicted_gain": sum(c.predicted_gain for c in plan.changes) if plan.changes else None,
        **noted,
    }


def shares_of(
    step: int,
    names: Sequence[str],
    shares: tuple[Sequence[int], Sequence[int]],
    seconds: float,
    account: tuple[int, int],
    reason: str | None,
) -> dict[str, Any]:
    """The line of a decision over units without places, such as shares of learning rate: ``shares`` before and after.

    ``account`` is the budget and what is spent of it.
    """
    rows = list(zip(names, *shares, strict=True))
    budget, spent = account
    return {
        "v": VERSION,
        "kind": "skip" if reason else "move" if any(old != new for _, old, new in rows) else "stay",
        "step": step, "seconds": seconds, "reason": reason,
        "sites": {
            name: {
                "before": old, "after": new, "released": max(0, old - new), "acquired": max(0, new - old),
                "keep_threshold": None, "want_threshold": None,
            }
            for name, old, new in rows
        },
        "budget": budget, "held": spent, "parked": budget - spent, "predicted_gain": None,
    }  # fmt: skip


def costs_of(table: CostTable, names: Sequence[str]) -> dict[str, Any]:
    """The line that says what the ledger charges: the cost table of a run, once, with its first step."""
    rows = zip(names, table.forward, table.inputs, table.weights, strict=True)
    return {
        "v": VERSION, "kind": "costs", "step": 1, "unit": table.unit,
        "layers": {name: {"forward": a, "inputs": b, "weights": c} for name, a, b, c in rows},
    }  # fmt: skip
