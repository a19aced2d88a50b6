"""CHTs: growth by topology, no gradient; soft choices."""

from __future__ import annotations

from realloc.methods.method import Method
from realloc.schedule import constant, linear
from realloc.scores.magnitude import magnitude
from realloc.scores.topology import topology
from realloc.select.sampled import sampled
from realloc.select.selector import Selector


def sharper(phase: float) -> Selector:
    """Draw those that stay with chances ``|w| ** T``, T from 1 to 3 over the run."""
    return sampled(1.0 / linear(1.0, 3.0)(phase))


def chts(density: float, *, drop: float = 0.3) -> Method:
    """Release softly by |w|, acquire softly by the CH2-L3n score of the layer's bipartite graph.

    Args:
        density: share of the weights held, (0, 1].
        drop: share of a layer's held weights released at each move, constant.

    Reference: CHTs (2501.19107, section 3, equations 1 and 2). Where we differ: ERK start instead of the correlated
    one; no removal of chains of dead neurons; constant density (the variant CHTss lets it fall).
    """
    return Method(
        "chts", density, reference="2501.19107", keep=magnitude, want=topology,
        survive=sharper, acquire=sampled(1.0), drop=constant(drop),
    )  # fmt: skip
