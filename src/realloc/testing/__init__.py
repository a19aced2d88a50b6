"""Does a method keep the promises? What a stranger's recipe must pass before it is trusted with a budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import realloc.testing.units as units
import realloc.testing.visits as visits
import realloc.testing.weights as weights
from realloc.attach import KINDS
from realloc.errors import ReallocError, ReallocWarning
from realloc.methods.example_method import ExampleMethod
from realloc.methods.method import Method

PROMISES: Final = weights.PROMISES  # of a method over weights
ERRORS: Final = (ReallocError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@final
@dataclass(frozen=True)
class Report:
    """What was checked, and how it went. Prints as a table."""

    method: str
    lines: tuple[tuple[str, str], ...]  # (promise, note)

    def __str__(self) -> str:
        width = max(len(promise) for promise, _ in self.lines)
        return "\n".join([f"{self.method}: keeps its promises", *(f"  {p:<{width}}  {note}" for p, note in self.lines)])


def check_method(method: Any, *, density: float = 0.3) -> Report:
    """Run a method through the promises, on a small net and made-up data, in float64. Takes about two seconds.

    Args:
        method: over weights its factory, density -> Method, such as `realloc.methods.rigl`; of any other kind (columns,
            ranks, deltas, widths, layers, rows, rates, examples) the method itself, such as `methods.rows(my_score)`.
            It runs for 24 steps with a move every fourth, so windows of widths and rates are cut to two steps there,
            and the age that widths ask for to none.
        density: share of the weights held, in (0, 1).

    Returns:
        One line a promise; print it.

    Raises:
        AssertionError: the first promise that does not hold, and how; or what is wrong with the method itself.

    Example:
        >>> from realloc import methods
        >>> print(check_method(methods.static))  # doctest: +ELLIPSIS
        static: keeps its promises
          budget exact after every step ...
        >>> print(check_method(methods.rs2(0.5)))  # doctest: +ELLIPSIS
        rs2: keeps its promises
          visits exact in every epoch ...
    """
    if isinstance(method, Method):
        raise AssertionError(
            f"check_method got the method {method.name!r}, already made; pass its factory, which takes a density: "
            "check_method(realloc.methods.rigl), not check_method(realloc.methods.rigl(0.3))"
        )
    if isinstance(method, ExampleMethod):
        return _checked(method.name, visits.PROMISES, method)
    if type(method) in KINDS:
        return _checked(method.name, units.PROMISES, method)
    made = weights.made_by(method, density)
    return _checked(made.name, weights.PROMISES, made, weights.undeclared)


def _checked(
    name: str, promises: Sequence[tuple[str, Callable[[Any], str]]], method: Any,
    remedy: Callable[[Any], str] = lambda method: "",
) -> Report:  # fmt: skip
    lines = []
    for promise, check in promises:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReallocWarning)
                note = check(method)
        except AssertionError as error:
            raise AssertionError(f"{name}: {promise}: {error}") from None
        except ERRORS as error:
            raise AssertionError(f"{name}: {promise}: {type(error).__name__}: {error}{remedy(method)}") from error
        lines.append((promise, note))
    return Report(name, tuple(lines))
