"""The methods by what they move: the kind is what a recipe says it returns."""

from __future__ import annotations

import inspect

from realloc import methods


def kind_of(name: str) -> str:
    return str(inspect.signature(getattr(methods, name)).return_annotation)


def named(kind: str) -> list[str]:
    return [name for name in methods.__all__ if kind_of(name) == kind]


WEIGHTS = named("Method")
COLUMNS = named("ColumnMethod")
LAYERS = named("LayerMethod")
RANKS = named("RankMethod")
DELTAS = named("DeltaMethod")
ROWS = named("RowMethod")
EXAMPLES = named("ExampleMethod")
RATES = named("RateMethod")
HOT_ROWS = named("HotRowMethod")
WIDTHS = sorted(named("WidthMethod"))
