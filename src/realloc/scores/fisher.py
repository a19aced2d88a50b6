"""Second-order worth, with the squared gradient in place of the curvature."""

from __future__ import annotations

from torch import Tensor

from realloc.scores.score import Score
from realloc.scores.seen import Seen


def _keep(seen: Seen) -> Tensor:
    return 0.5 * seen.total(seen.need("gradient").square() * seen.need("values").square())


def _want(seen: Seen) -> Tensor:
    return seen.total(seen.need("gradient").square())


fisher = Score("fisher", frozenset({"values", "gradient"}), _keep)
"""Sum of ``g^2 w^2 / 2`` over the unit's elements: the loss that removing a held unit would cost.

Reference: optimal brain damage with the empirical Fisher (Theis et al. 1801.05787, eq. 7). Where we differ: ``g`` is
the gradient of the whole batch, not of each example, which is cheaper and underrates noisy weights.
"""

fisher_want = Score("fisher want", frozenset({"gradient"}), _want)
"""Sum of ``g^2`` over the unit's elements: the first drop of the loss by a unit at zero, per learning rate.

The companion of ``fisher`` for units not held. It orders single weights as ``gradient`` does, and blocks by their
squared length.
"""
