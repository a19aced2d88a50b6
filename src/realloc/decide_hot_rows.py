"""Which ids release a row and which get one: from what the sketch knows to a plan, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from realloc.errors import plain
from realloc.methods.hot_row_method import HotRowMethod
from realloc.plan import Change, Plan
from realloc.pool.hot_rows import HotRows
from realloc.rng import stream
from realloc.scores.row_score import RowsKnown
from realloc.select.exchange import exchange


def decide_hot_rows(pool: HotRows, tables: Mapping[int, str], method: HotRowMethod, step: int) -> Plan:
    """The plan of one store after a step.

    Args:
        pool: the store, and what was noted since the last decision.
        tables: their names, by number.
        method: whose score and margin count.
        step: after which it is; random scores are a function of it.

    Returns:
        A change for each table; or a plan that is skipped, with its reason, where nothing was noted or a score is not
        finite.
    """
    if not pool.book.read("seen"):
        told = ", ".join(plain(name) or "the embedding" for name in tables.values())
        why = f"no look-up of {told} had a gradient up to step {step}: "
        return Plan(step, (), why + "is this the model you train, and are its gradients on?")
    slots, known = what_is_known(pool, step)
    worth = method.score.worth(known)
    if worth.shape != known.scores.shape or not bool(worth.isfinite().all()):
        return Plan(step, (), f"{method.score.name} gave scores that are not one finite number for each id")
    out, come = (slots[places] for places in exchange(worth, known.owns, pool.free, method.margin))
    values = torch.zeros(len(pool.store.buffer("keys")), dtype=worth.dtype, device=worth.device)
    values[slots] = worth
    changes = []
    for table, name in tables.items():
        gone, new = (part[pool.store.buffer("tables")[part] == table] for part in (out, come))
        changes.append(_change(pool, (table, name), (gone, new), values))
    return Plan(step, tuple(changes))


def what_is_known(pool: HotRows, step: int) -> tuple[Tensor, RowsKnown]:
    """Slots of the sketch that hold an id, int64 ``[n]``, and what is known of these."""
    store = pool.store
    slots = (store.buffer("keys") >= 0).nonzero().flatten()
    shared = torch.zeros_like(slots)
    tables = store.buffer("tables")[slots]
    for table in range(len(store.enrolled)):
        mine = tables == table
        shared[mine] = store.hashed(table, store.buffer("keys")[slots[mine]])[0]
    draw = stream(pool.book.read("seed"), "rows", pool.name, step)
    gained = store.buffer("scores")[slots] - store.buffer("inherited")[slots]  # of the id itself
    return slots, RowsKnown(
        gained.clamp(min=0), store.buffer("sums")[slots], store.buffer("shared_sums")[shared],
        store.buffer("owned")[slots] >= 0, draw,
    )  # fmt: skip


def _change(pool: HotRows, named: tuple[int, str], slots: tuple[Tensor, Tensor], worth: Tensor) -> Change:
    """What a move does to one table."""
    (table, name), (gone, new) = named, slots
    keys, before = pool.store.buffer("keys"), len(pool.owned_by(table))
    released, acquired = (keys[part].sort().values.cpu() for part in slots)
    return Change(
        name, before, before - len(gone) + len(new), released, acquired,
        float(worth[gone].max()) if len(gone) else None, float(worth[new].min()) if len(new) else None,
        float(worth[new].sum()),
    )  # fmt: skip
