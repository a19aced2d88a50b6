"""NeuroFS: inputs leave by strength and come back by gradient, while their number falls."""

from __future__ import annotations

from realloc.methods.column_method import ColumnMethod
from realloc.methods.method import Method, check_share
from realloc.schedule import cosine, linear
from realloc.scores.gradient import gradient
from realloc.scores.magnitude import magnitude


def neurofs(k: int | str = "10%", *, start: float = 1.0, drop: float = 0.2) -> ColumnMethod:
    """Release the inputs of least strength sum |w|, acquire fewer where sum |gradient| is largest, down to k.

    The number held falls in a straight line over the schedule. At each move it is first pruned to that line, then a
    share of the rest is exchanged; the last move leaves the strongest k and brings nothing.

    Args:
        k: inputs held at the end, 1 to the number D of inputs, or a part of them such as "10%".
        start: share of the inputs held at the start, (0, 1]; never fewer than k inputs.
        drop: share of the held inputs exchanged at the first move; cosine to zero.

    Raises:
        ConfigError: a k or a share out of range; with the model known, a k above D.

    Reference: NeuroFS (2303.07200). Where we differ: the layers are dense but for the columns that are not held (there:
    sparse, and rewired as well); the lengths of its two phases are not taken over: the number falls over the whole
    schedule; a column acquired again in the move that released it keeps its weights and moments, as in RigL.

    >>> neurofs(50).at("fc1.weight", 784).held(0.5) * 784
    417.0
    """
    check_share("start", start)

    def rule(k: int, inputs: int) -> Method:
        density = k / inputs
        return Method(
            "neurofs", density, keep=magnitude, want=gradient, held=linear(max(start, density), density),
            drop=cosine(drop), settles=True,
        )  # fmt: skip

    return ColumnMethod("neurofs", k, rule=rule, reference="2303.07200")
