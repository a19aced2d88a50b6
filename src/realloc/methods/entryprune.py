"""EntryPrune: an input is judged by the first impression that it makes."""

from __future__ import annotations

from realloc.methods.column_method import ColumnMethod
from realloc.methods.columns import in_turn
from realloc.scores.impression import impression


def entryprune(k: int | str = "10%", *, candidates: float = 0.2) -> ColumnMethod:
    """Train k inputs and some candidates; at each move the least impressive leave, and random others take their place.

    Of D inputs, ``k + floor(candidates * (D - k))`` are held, and all but k of them are exchanged at each move that is
    not the last. A score is the size of a column's gradient, summed over the interval in which it entered, in standard
    deviations from the mean over all columns held then; one that enters again keeps the better of its scores. The last
    move leaves the best k and brings nothing.

    Args:
        k: inputs held at the end, 1 to D, or a part of them such as "10%".
        candidates: share of the other inputs held beside them, (0, 1].

    Raises:
        ConfigError: a k or a share out of range; with the model known, more than D inputs, or a share below one input.

    Reference: EntryPrune (2410.02344), by a reading of the authors' code. Where we differ: a column enters at exactly
    zero (there: within 1e-8 of it) and without the Adam moments of the one before (there they stay); its second moments
    start at the median of the layer's; those that have just left cannot enter in the same move; the pool keeps its
    length when the candidates go, so that the optimizer is never made anew (``handle.compact()`` gives them back).

    >>> entryprune(50).at("fc1.weight", 784).start_density * 784
    196.0
    """
    return in_turn("entryprune", k, impression, candidates)
