"""From words on a command line to a method: names of ``realloc.methods``, settings by their own signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, final, get_args

import realloc.methods as methods
from realloc.errors import ConfigError, nearest, plain
from realloc.methods.column_method import ColumnMethod
from realloc.methods.example_method import ExampleMethod
from realloc.methods.hot_row_method import HotRowMethod
from realloc.methods.method import Method
from realloc.methods.rate_method import RateMethod
from realloc.methods.width_method import WidthMethod
from realloc.schedule import Curve, constant
from realloc.train.config import Setting, refuse_flag

AnyMethod = Method | ColumnMethod | ExampleMethod | RateMethod | HotRowMethod | WidthMethod
Recipe = Callable[..., AnyMethod]
KINDS: Final = tuple(kind.__name__ for kind in get_args(AnyMethod))  # a new kind of unit is one word above


def _recipes() -> dict[str, Recipe]:
    """Those that words and numbers can make; what takes a tensor or another method is for Python."""
    found = {name: getattr(methods, name) for name in methods.__all__}
    return {
        name: make
        for name, make in found.items()
        if inspect.isfunction(make)
        and _signature_kind(make) in KINDS
        and all(p.name == "density" or p.default is not p.empty for p in _signature(make).values())
    }


def _signature_kind(make: Recipe) -> str:
    return str(inspect.signature(make).return_annotation)


def takes_density(name: str) -> bool:
    """Whether a recipe spends a density of weights."""
    return "density" in _signature(RECIPES[name])


def moves_rows(name: str) -> bool:
    """Whether a recipe moves embedding rows."""
    return name in RECIPES and _signature_kind(RECIPES[name]) == HotRowMethod.__name__


def _signature(make: Recipe) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(make).parameters


RECIPES: Mapping[str, Recipe] = _recipes()


@final
@dataclass(frozen=True)
class Option:
    """One setting of a method: its name, what it is when not set, and whether it may be a number or a word."""

    name: str
    default: Any
    either: bool = False


def options(name: str) -> tuple[Option, ...]:
    """The settings that a method takes by ``--set``: those that words can say; ``density`` has its own flag."""
    parameters = [p for p in _signature(RECIPES[name]).values() if p.name != "density" and _sayable(p)]
    return tuple(Option(p.name, p.default, p.annotation == "int | str") for p in parameters)


def _sayable(parameter: inspect.Parameter) -> bool:
    """Whether its default is a number, a word, a curve or nothing: a score or a rule is for Python."""
    default = parameter.default
    return default is None or default is parameter.empty or isinstance(default, bool | int | float | str | Curve)


def recipe(name: str, density: float, settings: Mapping[str, Setting]) -> AnyMethod:
    """Make a method from words.

    A number given for a curve sets its start; the curve keeps its shape. Raises ConfigError for a setting that the
    method does not have, with the nearest name, and for a value of the wrong kind.
    """
    known = {option.name: option for option in options(name)}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            refuse_flag(key, value)
            takes = f"takes {', '.join(known)}" if known else "takes no settings"
            raise ConfigError(f"setting '{plain(key)}' is unknown: '{name}' {takes}{nearest(key, known, 1)}")
        values[key] = _fitting(name, known[key], value)
    return RECIPES[name](**({"density": density} if takes_density(name) else {}), **values)


def _fitting(method: str, option: Option, value: Setting) -> Any:
    key, default = option.name, option.default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, Curve) and number:
        return constant(float(value)) if default.shape == "constant" else replace(default, start=float(value))
    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(default, float):
        fits = number
    elif isinstance(default, str):
        fits = isinstance(value, str) or (option.either and isinstance(value, int) and number)
    else:
        fits = default is None or default is inspect.Parameter.empty
    if not fits:
        kind = "number" if isinstance(default, Curve | float) else type(default).__name__
        kind = "whole number or a part" if option.either else kind
        raise ConfigError(f"setting '{key}' of '{method}' is {plain(str(value))}; give a {kind}, such as {default}")
    return float(value) if isinstance(default, float) else value
