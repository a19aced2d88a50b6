"""What an optimizer's step may do besides stepping: run a closure (Lightning), or skip (a GradScaler)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_gradients(args: tuple[Any, ...], kwargs: dict[str, Any], act: Callable[[], None]) -> tuple[Any, Any] | None:
    """Run ``act`` once the gradients of a step are there: now, or behind the closure that makes them.

    For an optimizer's pre-hook; returns what it is to return, the arguments of the same step or None.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        act()
        return None

    def wrapped() -> Any:
        result = closure()
        act()
        return result

    return (args[0],), {**kwargs, "closure": wrapped}


def skipped(optimizer: Any) -> bool:
    """Whether a GradScaler made the optimizer skip by itself: it leaves word there, and the hooks run all the same."""
    found_inf = optimizer.__dict__.get("found_inf")
    return found_inf is not None and float(found_inf) > 0
