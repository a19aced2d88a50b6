"""Putting embedding tables on pools of rows, with and without an optimizer. Installs no hook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import nn

from realloc.choose_tables import TableChoice, choose_tables
from realloc.errors import ConfigError, StateError, plain
from realloc.methods.row_method import RowMethod
from realloc.plan import SiteLine, StartPlan
from realloc.pool.groups import group_of
from realloc.pool.probe import fresh_state
from realloc.pool.row_state import carry_rows_in, check_room, moved_ids
from realloc.pool.rows import Fresh, RowPool, pools_of, put_in

REMEDY: Final = "Train the table in full, or take an elementwise optimizer such as AdamW or SGD"


@final
@dataclass(frozen=True, eq=False)
class BoundRows:
    """Pools of rows under an optimizer, and what a fresh instance of it writes for each."""

    pools: tuple[RowPool, ...]
    fresh: dict[str, Fresh]


def plan_rows(root: nn.Module, method: RowMethod) -> TableChoice:
    """Choose the tables of a model that has no pool of rows yet.

    Raises:
        ConfigError: no table fits.
        StateError: the model has such pools already.
    """
    if pools_of(root):
        raise StateError("this model's embeddings are on pools already; detach() the handle first")
    return choose_tables(root, method)


def describe_rows(choice: TableChoice, method: RowMethod) -> StartPlan:
    """The table that `prepare` returns."""
    sizes = [(t.module.num_embeddings, t.module.embedding_dim) for t in choice.tables]
    lines = tuple(
        SiteLine(t.name, size, size[0] * size[1], 0, "row", "gather", f"at most {method.rows:,} rows")
        for t, size in zip(choice.tables, sizes, strict=True)
    )
    budget = sum(method.rows * width for _, width in sizes)
    notes = (
        "a row is held from the first time that training looks its id up; until then the table is read",
        f"gradients and optimizer state: of {budget:,} parameters instead of {sum(v * d for v, d in sizes):,}",
    )
    whole = sum(v * d for v, d in sizes)
    return StartPlan(method.name, budget / whole, budget, lines, choice.others, notes, method.asked)


def build_rows(choice: TableChoice, method: RowMethod) -> tuple[RowPool, ...]:
    """Make the pools, in place. Gradients that were there are dropped."""
    return tuple(put_in(table.module, table.name, method.rows) for table in choice.tables)


def rows_under(root: nn.Module, optimizer: torch.optim.Optimizer, method: RowMethod) -> tuple[BoundRows, TableChoice]:
    """Put tables on pools under an optimizer that may have trained them: what it has moments for holds rows at once.

    Raises:
        ConfigError: the optimizer lacks a table, is not elementwise, or has moments for more rows than the budget.
    """
    choice = plan_rows(root, method)
    fresh = {table.name: _fresh(table.name, table.weight, optimizer) for table in choice.tables}
    ids, gradients = {}, {}
    for table in choice.tables:
        weight, shape = table.weight, (table.module.num_embeddings, table.module.embedding_dim)
        ids[table.name] = moved_ids(optimizer, weight, shape, weight.grad, fresh[table.name])
        gradients[table.name] = weight.grad
        check_room(table.name, ids[table.name], method.rows)
    pools = build_rows(choice, method)
    for pool in pools:
        name = pool.site.name
        carry_rows_in(pool, optimizer, ids[name], gradients[name], fresh[name])
    return BoundRows(pools, fresh), choice


def bind_rows(pools: tuple[RowPool, ...], optimizer: torch.optim.Optimizer, method: RowMethod) -> BoundRows:
    """Bind a prepared model to its optimizer, which may have been made before or after, and may have state.

    Raises:
        ConfigError: as `rows_under`.
        StateError: the model was prepared with another number of rows.
    """
    other = next((pool for pool in pools if pool.capacity != method.rows), None)
    if other is not None:
        raise StateError(
            f"{plain(other.site.name)} was prepared for {other.capacity:,} rows, attach got {method.rows:,}; pass the "
            "same method to both"
        )
    fresh = {pool.site.name: _fresh(pool.site.name, pool.parameter, optimizer) for pool in pools}
    ids = {}
    for pool in pools:
        name = pool.site.name
        ids[name] = moved_ids(optimizer, pool.parameter, pool.site.shape, None, fresh[name])
        check_room(name, ids[name], method.rows)
    for pool in pools:
        name = pool.site.name
        if any(
            torch.is_tensor(v) and v.shape == pool.site.shape for v in optimizer.state.get(pool.parameter, {}).values()
        ):
            carry_rows_in(pool, optimizer, ids[name], None, fresh[name])
    return BoundRows(pools, fresh)


def _fresh(name: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> Fresh:
    index = group_of(optimizer, parameter)
    if index is None:
        raise ConfigError(
            f"the optimizer does not hold {plain(name)!r}; make it from this model's parameters, or freeze that table"
        )
    return fresh_state(optimizer, optimizer.param_groups[index], parameter, REMEDY)
