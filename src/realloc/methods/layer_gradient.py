"""The layers whose gradient is largest for what they cost, within a budget of FLOPs or of microseconds."""

from __future__ import annotations

from realloc.cache.settings import Cache
from realloc.methods.layers import Chosen, LayerMethod, Turn


def layer_gradient(budget: float = 0.5, *, cache: Cache | None = None) -> LayerMethod:
    """Train the set of layers with the largest squared gradient norm that the budget pays for.

    A small step along the gradient g lowers the loss by the rate times |g|^2, so the squared norm is what a layer
    gains, to first order (the score of AdaGradSelect, 2512.15764, and of Aletheia, 2604.15351; theirs is the norm, or
    its running sum; ours is that of the step of the decision). What a set costs depends on its lowest layer, down to
    which the gradient must flow, so each choice of a lowest layer is filled by gain for cost and the best is taken.
    Until the first decision the top layers that fit train.

    Args:
        budget: share of the cost of a step in which every layer trains: FLOPs, or microseconds by ``costing(table)``.
        cache: of the layers below the lowest one; a turn that frees lower layers starts it anew.

    Raises:
        ConfigError: not a share.

    >>> layer_gradient(0.6).needs
    frozenset({'gradient'})
    """

    def choose(turn: Turn) -> Chosen:
        gains = turn.gradient or tuple(float(layer + 1) for layer in range(turn.count))
        best: tuple[float, Chosen] = (0.0, ())
        for lowest in reversed(range(turn.count)):
            taken: Chosen = (lowest,)
            if turn.cost(taken) > turn.budget:
                continue
            for layer in sorted(range(lowest + 1, turn.count), key=lambda one: -gains[one]):
                wider = tuple(sorted((*taken, layer)))
                if turn.cost(wider) <= turn.budget:
                    taken = wider
            best = max(best, (sum(gains[layer] for layer in taken), taken))
        return best[1]

    return LayerMethod(
        "layer_gradient", choose, reference="2512.15764", moves=True, needs=frozenset({"gradient"}), budget=budget,
        cache=cache,
    )  # fmt: skip
