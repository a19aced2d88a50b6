"""Which embedding tables train their touched rows in a pool, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import final

from torch import nn

from realloc.errors import ConfigError, nearest, plain
from realloc.methods.row_method import RowMethod


@final
@dataclass(frozen=True, eq=False)
class Table:
    """An embedding whose rows may train in a pool."""

    name: str  # of its weight
    module: nn.Embedding

    @property
    def weight(self) -> nn.Parameter:
        """Its weight ``[V, d]``."""
        found = self.module._parameters["weight"]
        assert found is not None
        return found


@final
@dataclass(frozen=True, eq=False)
class TableChoice:
    """Tables with a pool; names of the others, and why."""

    tables: tuple[Table, ...]
    others: tuple[tuple[str, str], ...]


def choose_tables(root: nn.Module, method: RowMethod) -> TableChoice:
    """Find the tables. Changes nothing.

    By default every plain `nn.Embedding` that trains, has more rows than the budget, and is read by looking ids up.

    Raises:
        ConfigError: no table, a pattern without a match, or a named table that cannot train in a pool.
    """
    modules = {name: m for name, m in root.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    named = None if method.tables is None else _named(modules, method.tables)
    shared = _shared(root)
    tables, others = [], []
    for name, module in modules.items():
        if named is not None and name not in named:
            continue
        reason = _unfit(module, shared, method.rows)
        if reason is None:
            assert isinstance(module, nn.Embedding)
            tables.append(Table(f"{name}.weight" if name else "weight", module))
        elif named is not None:
            raise ConfigError(f"{plain(name)} cannot train its touched rows: {reason}")
        else:
            others.append((plain(name), reason))
    if not tables:
        why = "; ".join(f"{n}: {r}" for n, r in others[:4]) or "there is no nn.Embedding"
        raise ConfigError(f"no table of this {type(root).__name__} can train its touched rows in a pool ({why})")
    return TableChoice(tuple(tables), tuple(others))


def _named(modules: Mapping[str, nn.Module], patterns: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f"table pattern {pattern!r} is no string; use names such as '*word_embeddings'")
        hits = {name for name in modules if fnmatchcase(name, pattern) or fnmatchcase(f"{name}.weight", pattern)}
        if not hits:
            raise ConfigError(f"pattern {plain(pattern)!r} matches no embedding{nearest(pattern, modules)}")
        found |= hits
    return found


def _shared(root: nn.Module) -> dict[int, list[str]]:
    """The modules that hold each parameter."""
    holders: dict[int, list[str]] = {}
    for name, module in root.named_modules():
        for parameter in module._parameters.values():
            holders.setdefault(id(parameter), []).append(name)
    return holders


def _unfit(module: nn.Module, shared: Mapping[int, list[str]], rows: int) -> str | None:
    """The first reason why a table cannot train in a pool."""
    if type(module) is not nn.Embedding:
        return f"a {type(module).__name__} is no plain nn.Embedding"
    weight = module._parameters["weight"]
    if weight is None:
        return "it has no weight"
    others = shared[id(weight)][1:]
    reasons = {
        "it is on the meta device; materialise the model first": weight.is_meta,
        f"its weight is tied to {plain(', '.join(others))!r}, and an output head gives every row a gradient in each "
        "step": bool(others),
        "it is frozen": not weight.requires_grad,
        f"max_norm={module.max_norm} writes to the rows it looks up": module.max_norm is not None,
        "its gradients are sparse already (sparse=True)": module.sparse,
        "scale_grad_by_freq counts ids that hold no row": module.scale_grad_by_freq,
        "it has a forward of its own, as accelerate's device hooks give it": "forward" in module.__dict__,
        f"the budget of {rows:,} rows is no less than its {module.num_embeddings:,}": module.num_embeddings <= rows,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
