"""What a step costs when some layers train: FLOPs of one token, as a function of the whole choice."""

from __future__ import annotations

from collections.abc import Sequence


def layer_flops(sizes: Sequence[int], on: Sequence[int], *, below: bool, cached: bool) -> int:
    """FLOPs of one token in the blocks, forward and backward, without the head.

    Forward, the gradient of the input and the gradient of the weights each take two operations for each weight of a
    layer. A layer that trains pays all three; one above it that does not train passes the gradient on and pays two;
    one below the lowest pays the forward pass, or nothing where that is read from a cache. Attention between tokens is
    left out: it is the same share of every layer.

    Args:
        sizes: weights of each layer, from the input.
        on: layers that train, ascending.
        below: whether what runs below the first layer trains, so that the gradient flows through all.
        cached: whether the layers below the lowest one that trains are read.

    >>> [layer_flops([5] * 6, [4, 5], below=False, cached=cached) for cached in (True, False)]
    [60, 100]
    >>> layer_flops([5] * 6, range(6), below=True, cached=False)
    180
    """
    lowest = 0 if below else min(on, default=len(sizes))
    chosen = set(on)
    total = 0
    for layer, size in enumerate(sizes):
        parts = (0 if cached else 1) if layer < lowest else 3 if layer in chosen else 2
        total += 2 * size * parts
    return total
