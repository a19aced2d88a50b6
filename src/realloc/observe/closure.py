"""A closure given to the optimizer's step, as Lightning does: forward and backward run inside the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def behind(args: tuple[Any, ...], kwargs: dict[str, Any], act: Callable[[], None]) -> tuple[Any, Any] | None:
    """Arguments of the same step whose closure runs ``act`` when it is done; None where there is no closure."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return None

    def wrapped() -> Any:
        result = closure()
        act()
        return result

    return (args[0],), {**kwargs, "closure": wrapped}
