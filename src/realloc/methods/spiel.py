"""SpIEL: a sparse delta over frozen weights that moves to where the gradient pulls."""

from __future__ import annotations

from functools import partial
from typing import Literal

from realloc.errors import ConfigError
from realloc.methods.delta_method import DeltaMethod
from realloc.methods.method import Method
from realloc.observe.candidates import strongest
from realloc.schedule import linear
from realloc.scores.gradient import gradient
from realloc.scores.magnitude import magnitude


def spiel(
    budget: int | None = None,
    *,
    density: float | None = None,
    drop: float = 0.2,
    steps: int = 5,
    candidates: float = 1.0,
    begin: Literal["random", "gradient"] = "random",
) -> DeltaMethod:
    """Release the ``drop`` share of smallest |delta| over all layers, acquire where the summed gradient is largest.

    A move looks at ``candidates`` places for each one held, those of largest |gradient| ``steps`` - 1 steps before it,
    and sums their gradients up to its own step. Layers compete: the budget is one number for all of them. A new weight
    of the delta starts at zero; one that is released takes the layer back to the frozen weight, and the record says by
    how much the weight jumped.

    Args:
        budget: parameters.
        density: share of the weights of the layers that take part, instead of ``budget``.
        drop: share released at the first move, [0, 1); falls to zero in a straight line.
        steps: over which gradients are summed before a move, 2 or more.
        candidates: places looked at for each weight held.
        begin: "random" places, in each layer as many as in proportion to in + out; or "gradient": the largest of a few
            batches over all layers, by `realloc.calibrate`, which stands for the authors' first pass.

    Raises:
        ConfigError: a setting out of range, or neither or both of ``budget`` and ``density``.

    Reference: SpIEL-AG (2401.16405, section 3.2, and its released code: |delta| where the paper drops by the change of
    delta). Where we differ: layers share one budget, where the authors fix each one's; candidates are places not held;
    second moments of a new weight start at the mean square of its gradients, as there, first moments at zero.

    >>> spiel(budget=300_000).asked
    '300000 parameters, places by random'
    """
    if begin not in ("random", "gradient"):
        raise ConfigError(f"begin is {begin!r}; use 'random' or 'gradient'")
    rule = partial(_rule, drop=drop, steps=steps, candidates=candidates)
    start: Literal["rule", "gradient"] = "gradient" if begin == "gradient" else "rule"
    return DeltaMethod("spiel", rule, budget, density, start, "2401.16405")


def _rule(density: float, drop: float, steps: int, candidates: float) -> Method:
    return Method(
        "spiel", density, keep=magnitude, want=gradient, across=True, candidates=strongest(candidates, steps=steps),
        drop=linear(drop), moments="seed",
    )  # fmt: skip
